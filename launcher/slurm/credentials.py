"""Files that look like credentials: the copy of the code, which people share, leaves them out."""

from fnmatch import fnmatchcase
from pathlib import PurePath

# By name, and in small letters.
_NAMES = (
    *(".env", ".env.*", "*.env", ".envrc", ".secrets*", "secrets.*ml", "secrets.json", "*.secret"),
    *("*.pem", "*.key", "*.ppk", "*.p8", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.gpg", "*.age", "*.keytab", "krb5cc_*"),
    *(".netrc", "_netrc", ".authinfo*", ".git-credentials", ".gitcredentials", ".htpasswd"),
    *(".pypirc", "pip.conf", ".npmrc", ".yarnrc", ".yarnrc.yml", ".gem", ".condarc", ".dockercfg"),
    *(".pgpass", ".my.cnf", ".s3cfg", ".boto", ".rclone.conf", "rclone.conf", ".passwd*"),
    *("kaggle.json", "credentials", "credentials.*", ".credentials*", "client_secret*.json"),
    *("service_account*.json", "service-account*.json", "application_default_credentials.json"),
    *("token", "token.json", "token.txt", "*.token", ".token*", ".*token", ".*_token", "*_token"),
    *("api_key*", "apikey*", ".api_key*", "*_api_key", "*_api_key.txt", "password.txt"),
    *("kubeconfig", "*.kubeconfig", "terraform.tfvars", "*.auto.tfvars", "*.tfstate", ".vault-*"),
)
# All that lies in them.
_FOLDERS = (".ssh", ".aws", ".azure", ".gnupg", ".kube", ".docker", ".gcloud", ".kaggle", ".oci")


def looks_secret(name: str) -> bool:
    """Whether a file looks like credentials, by its path below the code's folder."""
    path = PurePath(name.lower())
    return any(fnmatchcase(path.name, pattern) for pattern in _NAMES) or any(
        folder in _FOLDERS for folder in path.parts[:-1]
    )
