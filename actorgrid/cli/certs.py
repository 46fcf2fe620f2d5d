"""``actorgrid certs`` and ``actorgrid tokens``: who may do what on a grid, as files or as Kubernetes Secrets."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from actorgrid.cli import common, placement
from actorgrid.cluster import certificates, credential_files
from actorgrid.credentials import ROLES, read_tokens
from actorgrid.errors import SettingsError

app = typer.Typer(no_args_is_help=True, help="Make and renew a grid's certificates: its own authority, hosts, people and applications.")
tokens_app = typer.Typer(no_args_is_help=True, help="Tokens of applications and people: hosts keep only a digest of each.")

#: A warning is printed for certificates with less.
SOON_DAYS: Final = 14.0

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Of the authority; each holder has a directory inside.")]
TokensFile = Annotated[Path, typer.Argument(metavar="FILE", help="The file that hosts read (ACTORGRID_TOKENS).")]
Roles = Annotated[list[str], typer.Option("--role", metavar="ROLE", help="caller, observer or operator; may be given several times.")]
Days = Annotated[int, typer.Option("--days", min=1, max=certificates.DAYS_MAX, help="How long a certificate counts.")]
Addresses = Annotated[
    list[str] | None, typer.Option("--address", metavar="NAME", help="Name or IP address of hosts, for curl and browsers; may be repeated.")
]


@app.command("make")
def make_command(
    directory: Directory,
    cluster: Annotated[str, typer.Option("--cluster", metavar="ID", help="Id of the grid, as `actorgrid status` tells it.")],
    addresses: Addresses = None,
    days: Days = certificates.LEAF_DAYS,
) -> None:
    """Make an authority, a certificate for all hosts, and one each for a caller, an observer and an operator."""
    with common.errors_told():
        made = credential_files.make(directory, cluster, addresses=addresses or (), days=days)
    for holder in made:
        common.write_line(str(holder))


@app.command("issue")
def issue_command(
    directory: Directory,
    roles: Annotated[list[str], typer.Option("--role", metavar="ROLE", help=f"{', '.join(ROLES)}; may be given several times.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Of the holder; of a host: its name.")],
    addresses: Addresses = None,
    days: Days = certificates.LEAF_DAYS,
) -> None:
    """Make one more certificate, in DIR/NAME."""
    with common.errors_told():
        if wrong := [role for role in roles if role not in ROLES]:
            raise SettingsError(f"there is no role {', '.join(wrong)}; roles are {', '.join(ROLES)}")
        common.write_line(str(credential_files.issue(directory, roles, name, addresses=addresses or (), days=days)))


@app.command("renew")
def renew_command(
    directory: Directory,
    force: Annotated[bool, typer.Option("--force", help="Also those with most of their life left.")] = False,
    days: Annotated[int | None, typer.Option("--days", min=1, max=certificates.DAYS_MAX, help="Default: as many as they had.")] = None,
) -> None:
    """Renew certificates with less than a third of their life left. Hosts and clients take the new files by themselves."""
    with common.errors_told():
        renewed = credential_files.renew(directory, force=force, days=days)
    for holder in renewed:
        common.write_line(f"renewed {holder}")
    if not renewed:
        common.write_line("nothing is due")


@app.command("show")
def show_command(
    path: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="A directory of credentials, or one certificate.")],
    as_json: placement.JsonOption = False,
) -> None:
    """Show certificates: whose they are, and until when."""
    with common.errors_told():
        found = credential_files.show(path)
    rows = [
        {
            "holder": name,
            "identity": ", ".join(seen.identities) or ("authority" if seen.is_authority else "none"),
            "addresses": ", ".join(seen.addresses),
            "until": seen.not_after.isoformat(timespec="minutes"),
            "days left": round(seen.days_left, 1),
        }
        for name, seen in found
    ]
    if as_json:
        for row in rows:
            common.write_line(msgspec.json.encode(row).decode())
        return
    placement.new_console().print(placement.table_of(list(rows[0]), rows))
    for row in rows:
        if float(str(row["days left"])) < SOON_DAYS:
            typer.echo(f"actorgrid: {row['holder']} expires soon: {row['until']}", err=True)


@app.command("secrets")
def secrets_command(
    name: Annotated[str, typer.Option("--name", metavar="NAME", envvar="ACTORGRID_STATEFULSET", help="The Secrets begin with it.")],
    cluster: Annotated[str, typer.Option("--cluster", metavar="ID", envvar="ACTORGRID_CLUSTER_ID", help="Id of the grid.")],
    namespace: Annotated[str, typer.Option("--namespace", metavar="NAME", envvar="ACTORGRID_NAMESPACE", help="Of the Secrets.")],
    addresses: Addresses = None,
    labels: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Of Secrets that are made.")] = None,
    days: Days = certificates.LEAF_DAYS,
    only_renew: Annotated[bool, typer.Option("--only-renew", help="Make nothing that is missing; needs no right to create.")] = False,
) -> None:
    """Make the grid's Secrets on Kubernetes, and renew what is due. The chart's Jobs do this."""
    from actorgrid.cluster import kubernetes_secrets

    with common.errors_told():
        wrong = [label for label in labels or () if label.count("=") != 1]
        if wrong:
            raise SettingsError(f"a label is KEY=VALUE, got {', '.join(wrong)}")
        store = kubernetes_secrets.KubernetesSecrets(namespace, dict(label.split("=") for label in labels or ()))
        done = kubernetes_secrets.settle(store, name, cluster, addresses=addresses or (), days=days, only_renew=only_renew)
    for secret, what in done.items():
        common.write_line(f"{what} {secret}")


@tokens_app.command("add")
def add_token_command(
    path: TokensFile,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="For people and logs.")],
    roles: Roles,
    days: Annotated[int | None, typer.Option("--days", min=1, help="How long it counts; default: until it is removed.")] = None,
) -> None:
    """Make a token and print it; it is kept nowhere, FILE has its digest."""
    with common.errors_told():
        common.write_line(credential_files.add_token(path, name, roles, days))


@tokens_app.command("list")
def list_tokens_command(path: TokensFile, as_json: placement.JsonOption = False) -> None:
    """Show which tokens hosts take."""
    with common.errors_told():
        records = read_tokens(path).tokens
    rows = [{"name": each.name, "roles": ", ".join(each.roles), "until": _date(each.expires_ms)} for each in records]
    if as_json:
        for row in rows:
            common.write_line(msgspec.json.encode(row).decode())
        return
    placement.new_console().print(placement.table_of(["name", "roles", "until"], rows))


@tokens_app.command("remove")
def remove_token_command(path: TokensFile, name: Annotated[str, typer.Argument(metavar="NAME", help="Of the token.")]) -> None:
    """Let hosts take a token no more; connections that were made with it end within seconds."""
    with common.errors_told():
        credential_files.remove_token(path, name)
    common.write_line(f"removed {name}")


def _date(at_ms: int) -> str:
    return datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC).isoformat(timespec="minutes") if at_ms else "removed"
