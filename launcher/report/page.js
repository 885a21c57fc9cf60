const read = (id) => JSON.parse(document.getElementById(id).textContent);
const figures = read("figures");
const told = read("told"); // runs, colours, columns
const one = (id) => document.getElementById(id);
const every = (selector) => [...document.querySelectorAll(selector)];
const narrow = window.matchMedia("(max-width: 560px)").matches;
const charts = figures.map((figure, index) => {
  const chart = one(`chart-${index}`);
  if (narrow) figure.layout.height = 240;
  Plotly.newPlot(chart, figure.data, figure.layout, { responsive: true, displayModeBar: false });
  return chart;
});
const update = (act) => charts.forEach((chart, index) => act(chart, figures[index]));
const hidden = new Set();
let lit = null; // the run that is pointed at
let colours = told.colours;

// Colours: of the page, and of the runs.

const paint = (light) => {
  const style = getComputedStyle(document.documentElement);
  const of = (name, plain) => (light ? plain : style.getPropertyValue(name).trim());
  const [ink, rule, soft, page] = [of("--ink", "#1f2328"), of("--grid", "#e8e8e8"), of("--soft", "#656d76"), of("--page", "#ffffff")];
  const lines = {};
  for (const axis of ["xaxis", "yaxis"]) {
    Object.assign(lines, { [`${axis}.gridcolor`]: rule, [`${axis}.linecolor`]: soft, [`${axis}.tickcolor`]: soft });
  }
  const label = { "hoverlabel.bgcolor": page, "hoverlabel.font.color": ink };
  update((chart) => Plotly.relayout(chart, { "font.color": ink, ...label, ...lines }));
};
const dark = window.matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => paint(false));

const SCALE = [[70, 50, 127], [59, 82, 139], [33, 145, 140], [94, 201, 98], [236, 200, 45]];
const between = (share) => {
  const at = Math.min(share, 0.9999) * (SCALE.length - 1);
  const mixed = SCALE[Math.floor(at)].map((low, i) => low + (at % 1) * (SCALE[Math.floor(at) + 1][i] - low));
  return `rgb(${mixed.map(Math.round).join(",")})`;
};
const coloursBy = (name) => {
  if (!name) return told.colours;
  const values = told.columns[name];
  const known = values.filter((value) => value !== null);
  if (known.every((value) => typeof value === "number")) {
    const [least, most] = [Math.min(...known), Math.max(...known)];
    return values.map((value) => (value === null ? "#888888" : between((value - least) / (most - least || 1))));
  }
  const words = [...new Set(values.map(String))];
  return values.map((value) => between(words.indexOf(String(value)) / Math.max(words.length - 1, 1)));
};
const colour = (name) => {
  colours = coloursBy(name);
  update((chart) => {
    const those = chart.data.map((trace) => colours[trace.meta]);
    Plotly.restyle(chart, { "line.color": those, "marker.color": those });
  });
  every("[data-swatch]").forEach((swatch) => (swatch.style.background = colours[+swatch.dataset.swatch]));
};

// One run among many: shown or not, and pointed at.

const show = (run, visible) => {
  hidden[visible ? "delete" : "add"](run);
  update((chart) => {
    const those = chart.data.map((_, at) => at).filter((at) => chart.data[at].meta === run);
    if (those.length) Plotly.restyle(chart, { visible }, those);
  });
};
const point = (run) => {
  if (run === lit) return;
  lit = run;
  every("[data-row]").forEach((row) => row.classList.toggle("lit", +row.dataset.row === run));
  update((chart, figure) => {
    const opacity = figure.data.map((_, at) => (run === null ? figure.opacity[at] : chart.data[at].meta === run ? 1 : 0.12));
    Plotly.restyle(chart, { opacity });
  });
};
let next;
const soon = (run) => {
  clearTimeout(next);
  next = setTimeout(() => point(run), 40);
};
figures.forEach((figure) => (figure.opacity = figure.data.map((trace) => trace.opacity)));
if (told.runs.length > 1) {
  charts.forEach((chart) => {
    chart.on("plotly_hover", (event) => event.points.length === 1 && soon(event.points[0].data.meta));
    chart.on("plotly_unhover", () => soon(null));
  });
  every("[data-row]").forEach((row) => {
    row.addEventListener("mouseenter", () => soon(+row.dataset.row));
    row.addEventListener("mouseleave", () => soon(null));
  });
}
every("input[data-run]").forEach((box) => box.addEventListener("change", () => show(+box.dataset.run, box.checked)));

// What is drawn against what.

const averaged = (values, weight) => {
  let [sum, count] = [0, 0]; // as Adam does: without a bias towards 0 at the start
  return values.map((value) => {
    [sum, count] = [weight * sum + (1 - weight) * value, weight * count + (1 - weight)];
    return sum / count;
  });
};
const smooth = (weight) =>
  update((chart, figure) => {
    if (!figure.along) return;
    const training = figure.data.map((_, at) => at).filter((at) => figure.data[at].line.width < 2);
    if (training.length) Plotly.restyle(chart, { y: training.map((at) => averaged(figure.y[at], weight)) }, training);
  });
const against = (what) =>
  update((chart, figure) => {
    if (!figure.along) return;
    const x = figure.along.map((along, at) => (what === "step" ? figure.steps[at] : along[what]));
    Plotly.update(chart, { x }, { "xaxis.title.text": what === "seconds" ? "seconds" : what, "xaxis.autorange": true });
  });
const logarithmic = (wanted) =>
  update((chart, figure) => {
    const positive = figure.y.every((values) => values.every((value) => value > 0));
    if (figure.along && positive) Plotly.relayout(chart, { "yaxis.type": wanted ? "log" : "linear", "yaxis.autorange": true });
  });
figures.forEach((figure) => {
  figure.y = figure.data.map((trace) => [...trace.y]);
  figure.steps = figure.data.map((trace) => [...trace.x]);
});
const heard = (id, act) => one(id) && one(id).addEventListener("input", (event) => act(event.target));
heard("against", (input) => against(input.value));
heard("smooth", (input) => smooth(+input.value));
heard("log", (input) => logarithmic(input.checked));
heard("colour", (input) => colour(input.value));

// Tables in the order of a column; the legend goes along.

const words = new Intl.Collator(undefined, { numeric: true });
const amount = (text) => (/^-?[\d.,]+(e[-+]?\d+)?%?( of .*)?$/.test(text) ? parseFloat(text.replaceAll(",", "")) : NaN);
const compare = (a, b) => {
  if ((a === "-") !== (b === "-")) return a === "-" ? 1 : -1; // what a run does not have comes last
  const [x, y] = [amount(a), amount(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? words.compare(a, b) : x - y;
};
every("table.runs thead th").forEach((head, column) => {
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const text = (row) => row.cells[column].textContent.trim();
    const rows = [...body.rows].sort((a, b) => {
      const order = compare(text(a), text(b));
      return text(a) === "-" || text(b) === "-" ? order : down * order;
    });
    body.append(...rows);
    every("table.runs thead th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
    const items = new Map(every("li[data-row]").map((item) => [item.dataset.row, item]));
    const last = one("keys");
    rows.forEach((row) => items.has(row.dataset.row) && items.get(row.dataset.row).parentNode.insertBefore(items.get(row.dataset.row), last));
  });
});

// Paper has a width of its own, which plotly does not hear of: see `@media print`.
const resize = (size) => charts.forEach((chart) => Plotly.relayout(chart, size));
window.addEventListener("beforeprint", () => (paint(true), resize({ width: 500 })));
window.addEventListener("afterprint", () => (paint(false), resize({ width: null, autosize: true })));
paint(false);
