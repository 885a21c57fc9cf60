"""Options of sbatch: who gives them, which are refused, and what a job gets by them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from launcher.errors import BadInput
from launcher.slurm.profile import Profile

_PER_NODE = "one task a node starts all its processes: give --gpus-per-node"
_NPROC = "one task a node starts all its processes: give --nproc"
_EARLY_S = 60  # SLURM looks at time limits about twice a minute

# Options of sbatch that the scripts depend on, and why a user does not set them.
OURS = {
    "array": "--grid makes arrays",
    "chdir": "jobs run in the folder of their code, which the script enters by itself",
    "dependency": "--chain makes dependent jobs",
    "error": "the batch log is in the run directory",
    "gpus-per-socket": _PER_NODE,
    "gpus-per-task": _PER_NODE,
    "help": "`man sbatch` tells them all",
    "ntasks": "one task a node starts all its processes: give --nodes and --nproc",
    "ntasks-per-gpu": _NPROC,
    "ntasks-per-node": _NPROC,
    "open-mode": "a requeued job appends to its batch log",
    "output": "the batch log is in the run directory",
    "parsable": "--json prints the job's id",
    "requeue": "--no-requeue switches it off",
    "no-requeue": "it is an option of `launcher submit` itself",
    "tasks-per-node": _NPROC,
    "test-only": "nothing would be submitted: --dry-run shows the scripts",
    **{f"tres-per-{what}": _PER_NODE for what in ("job", "node", "socket", "task")},
    "usage": "`man sbatch` tells them all",
    "version": "`sbatch --version` tells it",
    "wait": "--follow waits for the end",
    "wrap": "the script comes from a template: give --template",
}
# Those that stand alone. Any other would take the next line of the script for its value.
FLAGS = {
    *("contiguous", "exclusive", "get-user-env", "hold", "ignore-pbs", "nice", "no-kill"),
    *("overcommit", "oversubscribe", "propagate", "quiet", "reboot", "resv-ports", "spread-job"),
    *("stepmgr", "use-min-nodes", "verbose"),
}
# Those that mean something here. sbatch takes a part of a name for the whole of it.
_KNOWN = {
    *OURS,
    *FLAGS,
    *("cpus-per-gpu", "cpus-per-task", "exclude", "export", "gpus", "gpus-per-node", "gres"),
    *("job-name", "mail-user", "nodes", "signal", "time"),
}
_CORES = ("cpus-per-task", "cpus-per-gpu", "exclusive", "mincpus")
# Variables by which a site, or a user, gives options to sbatch; most are named like the option.
_FROM_ENVIRONMENT = {
    "SBATCH_ARRAY_INX": "array",
    "SBATCH_MEM_PER_NODE": "mem",
    "SBATCH_TIMELIMIT": "time",
    **{
        f"SBATCH_{name.upper().replace('-', '_')}": name
        for name in (
            *("account", "clusters", "comment", "constraint", "container", "cpus-per-gpu", "error"),
            *("exclusive", "export", "gpu-bind", "gpu-freq", "gpus", "gpus-per-node"),
            *("gpus-per-socket", "gpus-per-task", "gres", "gres-flags", "hint", "job-name"),
            *("mem-per-cpu", "mem-per-gpu", "network", "no-kill", "no-requeue", "open-mode"),
            *("output", "overcommit", "partition", "prefer", "qos", "requeue", "reservation"),
            *("signal", "spread-job", "threads-per-core", "tres-per-task", "use-min-nodes"),
            *("wait", "wait-all-nodes", "wckey"),
        )
    },
}


class Setting(NamedTuple):
    """A value and who gave it, in words."""

    value: str
    source: str


def sbatch_options(words: Sequence[str]) -> dict[str, str]:
    """Turn KEY=VALUE, or KEY alone, into options of sbatch; "" is an option that stands alone."""
    pairs = [word.removeprefix("--").partition("=") for word in words]
    return {key: value_of(key, value) if equals else "" for key, equals, value in pairs}


def value_of(name: str, value: str) -> str:
    """Return the value of an option; raises BadInput where it is empty.

    Such is a shell's variable that is not set: without it the option may mean something else.
    """
    if not value.strip():
        raise BadInput(f"--{name} has an empty value", hint="give it a value, or leave it out")
    return value


def settled(
    given: Mapping[str, str],
    profile: Profile,
    defaults: Mapping[str, str],
    environment: Mapping[str, Setting] | None = None,
) -> dict[str, Setting]:
    """Return all options of sbatch: who is named first here wins.

    The environment's, of `of_environment`, are the site's and win only over defaults.

    Raises BadInput for a name that cannot be one, for those that the scripts depend on, and for
    one that lacks its value.
    """
    found = {name: Setting(value, "default") for name, value in defaults.items()}
    found |= environment or {}
    for values, source in ((profile.sbatch, profile.source), (given, "command line")):
        found |= {name: Setting(value, source) for name, value in values.items()}
    for name, (value, source) in found.items():
        _check(name, value, source)
    return found


def _check(name: str, value: str, source: str) -> None:
    if name in OURS:
        raise BadInput(f"sbatch's --{name} is not yours to give ({source})", hint=OURS[name])
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise BadInput(
            f"`{name}` is no option of sbatch ({source})",
            hint="write them in full and without dashes: --sbatch reservation=monday",
        )
    whole = [known for known in sorted(_KNOWN) if known.startswith(name)]
    if whole and name not in _KNOWN:
        hint = f"write it in full: {', '.join(whole)}"
        raise BadInput(f"`{name}` may be several options of sbatch, or a part of one ({source})",
                       hint=hint)  # fmt: skip
    if not value and name not in FLAGS:
        raise BadInput(f"sbatch's --{name} needs a value ({source})", hint=f"{name}=VALUE")


def of_environment(env: Mapping[str, str]) -> tuple[dict[str, Setting], list[str]]:
    """Return the options that SBATCH_ variables give, and in words those that are left out.

    Inside of a job there are none: they are what SLURM tells that job of itself.
    """
    found: dict[str, Setting] = {}
    left_out = []
    for variable in sorted(env) if "SLURM_JOB_ID" not in env else []:
        name, value = _FROM_ENVIRONMENT.get(variable), env[variable]
        if name in OURS:
            left_out.append(f"{variable} is left out: {OURS[name]}")
        elif name in FLAGS:
            found[name] = Setting(value if name == "exclusive" else "", variable)
        elif name and value:
            found[name] = Setting(value, variable)
        elif variable.startswith("SBATCH_") and not name:
            left_out.append(f"{variable} is left out: give what it says with --sbatch")
    return found, left_out


def nodes_of(settings: Mapping[str, Setting]) -> int:
    """Return how many nodes a job gets; raises BadInput for anything but one number."""
    value, source = settings["nodes"]
    if not re.fullmatch(r"[0-9]+", value) or int(value) < 1:
        raise BadInput(f"--nodes {value} is not one number ({source})")
    return int(value)


def gpus_of(settings: Mapping[str, Setting]) -> int:
    """Return GPUs of each node, 0 for none; raises BadInput where they cannot be counted.

    `gpus-per-node` and, with one node, `gpus` are `8`, `a100:8` or several of these; a `gres` may
    hold `gpu:a100:8` among others.
    """
    asked = {}
    for name in ("gpus-per-node", "gpus", "gres"):
        if name in settings:
            value, source = settings[name]
            counts = [_gpus(name, entry, source) for entry in value.split(",")]
            if any(count is not None for count in counts):
                asked[name] = sum(filter(None, counts))
    if len(asked) > 1:
        given = " and ".join(f"--{name}={settings[name].value} ({settings[name].source})"
                             for name in asked)  # fmt: skip
        raise BadInput(f"GPUs are asked for twice: {given}", hint="leave all but one out")
    if asked.get("gpus") and nodes_of(settings) > 1:
        raise BadInput(
            f"--gpus={settings['gpus'].value} of several nodes may be spread unevenly",
            hint="give --gpus-per-node",
        )
    return next(iter(asked.values()), 0)


def _gpus(name: str, entry: str, source: str) -> int | None:
    """Return how many GPUs an entry of an option asks for, None for what is no GPU."""
    what, pattern = "a number nor TYPE:NUMBER", r"(?:[^:=]+:)?([0-9]+)"
    if name == "gres":
        kind = re.split(r"[:=]", re.sub(r"^gres[:/]", "", entry.strip().lower()))[0]
        if kind in ("mps", "shard"):
            hint = "give --gpus-per-node"
            raise BadInput(f"--gres={entry} is a share of a GPU ({source})", hint=hint)
        if kind != "gpu":
            return None
        what = "gpu:NUMBER nor gpu:TYPE:NUMBER"
        pattern = r"(?i:(?:gres[:/])?gpu)(?:(?::[^:=]+)?[:=]([0-9]+)|(?::(?![0-9]+\w?$)[^:=]+)?)"
    if not (match := re.fullmatch(pattern, entry.strip())):
        raise BadInput(f"--{name} {entry} is neither {what} ({source})")
    return int(match[1] or 1)


def add_consequences(settings: dict[str, Setting], nproc: int, gpus: int) -> None:
    """Add options that follow from others; raises BadInput for values that cannot be."""
    nodes_of(settings)
    if 0 < gpus < nproc:
        raise BadInput(f"--nproc {nproc} asks for more processes than there are GPUs: {gpus}")
    if not gpus:
        cores = Setting(str(nproc), "default: a core for each process")
        settings.setdefault("cpus-per-task", cores)
    if "mail-user" in settings:
        settings.setdefault("mail-type", Setting("END,FAIL", "default with --mail-user"))
    value, source = settings["signal"]
    if not re.fullmatch(r"B:USR1@\d+", value):
        hint = "write --sbatch signal=B:USR1@SECONDS: it goes to the script, which passes it on"
        raise BadInput(f"sbatch's --signal={value} does not stop a run ({source})", hint=hint)


def add_spare_nodes(settings: dict[str, Setting], spare: int) -> None:
    """Ask for so many nodes more, and to keep those that are left when one is lost."""
    if spare:
        value, source = settings["nodes"]
        settings["nodes"] = Setting(str(int(value) + spare), f"{source}, and {spare} spare")
        settings["no-kill"] = Setting("", "--spare-nodes")


def for_site(options: Mapping[str, str], profile: Profile) -> dict[str, str]:
    """Return options with GPUs as the profile's site counts them."""
    found = dict(options)
    if profile.gpus == "gres":
        gpus = found.pop("gpus-per-node", found.pop("gpus", ""))
        gres = [found.get("gres", ""), *(f"gpu:{entry}" for entry in gpus.split(",") if entry)]
        if any(gres):
            found["gres"] = ",".join(filter(None, gres))
    return found


def words_of(options: Mapping[str, str]) -> Iterator[str]:
    """Give options as words of a command line."""
    for name, value in options.items():
        yield f"--{name}={value}" if value else f"--{name}"


def warnings(settings: Mapping[str, Setting], nproc: int, gpus: int) -> list[str]:
    """Return what is allowed, but hardly what is wanted, of a job's processes, cores and time."""
    found = []
    if gpus and not any(name in settings for name in _CORES):
        found.append(
            f"no cores are asked for {gpus} GPUs: SLURM gives one in all, where the site has no "
            "DefCpuPerGPU: give --cpus-per-task, or --sbatch cpus-per-gpu=N"
        )
    if nproc < gpus:
        found.append(f"{gpus} GPUs of each node are asked for, and {nproc} are used: --nproc")
    limit = seconds(settings["time"].value) if "time" in settings else None
    warned = int(settings["signal"].value.rpartition("@")[2])
    if limit and limit <= warned + _EARLY_S:
        time, source = settings["time"]
        found.append(
            f"--time={time} ({source}) leaves no time to train: SLURM signals {warned} s before "
            f"the limit, and up to {_EARLY_S} s earlier: --sbatch signal=B:USR1@SECONDS"
        )
    return found


def seconds(limit: str) -> int | None:
    """Return a time limit of sbatch in seconds, None for none, and for what is no time.

    `MIN`, `MIN:S`, `H:MIN:S`, `D-H`, `D-H:MIN`, `D-H:MIN:S`.
    """
    match = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+)(?::([0-9]+))?(?::([0-9]+))?", limit.strip())
    if not match:
        return None
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is None and len(parts) < 3:
        parts = [0, *parts]  # the first is minutes
    hours, minutes, secs = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + secs
