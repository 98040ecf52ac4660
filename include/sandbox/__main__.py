"""python -m sandbox: start the platforms on 127.0.0.1 and write the keys to an access file."""

import argparse
import asyncio
import gc
import json
import os
import secrets
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NoReturn

import uvicorn

from . import clock
from .app import App
from .control import Control
from .faults import Fault, take
from .platforms import every_platform
from .reactions import begin
from .settings import Settings
from .smtp import BOUNCE_ADDRESS, MailSink
from .state import World
from .webhook import MODES, Webhook
from .wechat_official import WechatOfficial
from .world import DATA_FILE, load_history

HOST = "127.0.0.1"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox",
        description="Shops (Taobao, JD, Youzan and others), social accounts, WeChat Pay coupons, our own follow-up pages and "
        "a mail server on 127.0.0.1, speaking the platforms' protocols. They sell the real baskets of include/data. "
        "Keys, secrets and the control API are written to the access file as soon as it listens.",
        epilog="Everything it answers is described in include/sandbox/README.md.",
    )
    parser.add_argument("--port", type=int, default=8180, help="HTTP port; 0 = a free one (default %(default)s)")
    parser.add_argument("--smtp-port", type=int, default=8125, help="SMTP port; 0 = a free one (default %(default)s)")
    parser.add_argument(
        "--access-file",
        type=Path,
        default=Path("var/sandbox/access.json"),
        help="where base URL, keys and secrets are written when the sandbox listens (default %(default)s)",
    )
    parser.add_argument("--customers", type=int, help="keep a spread sample of that many customers (default: all)")
    parser.add_argument("--seed", type=int, default=7, help="names, identities and reactions (default %(default)s)")
    parser.add_argument(
        "--anchor",
        type=date.fromisoformat,
        metavar="YYYY-MM-DD",
        help="the day the data's last day, 2011-12-09, becomes (default: yesterday in China)",
    )
    parser.add_argument(
        "--now",
        metavar="INSTANT",
        help="where the clock starts: an ISO instant, or `machine` for the machine's own time, which any official client "
        "needs (default: the end of the anchor day, 00:00 +08:00)",
    )
    parser.add_argument("--top-rate", type=int, help=f"TOP calls per method and second (default {Settings().top_rate})")
    parser.add_argument("--webhook", metavar="URL", help="POST every WeChat push there too, signed as WeChat signs it")
    parser.add_argument(
        "--webhook-mode", choices=MODES, default="plain", help="how its body is sent (default %(default)s)"
    )
    parser.add_argument("--data-file", type=Path, default=DATA_FILE, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.customers is not None and given.customers < 1:
        parser.error("--customers must be at least 1")
    if given.anchor is None:
        given.anchor = clock.day_of(time.time()) - timedelta(days=1)
    return given


def fail(sentence: str) -> NoReturn:
    print(f"sandbox: {sentence}", file=sys.stderr)  # noqa: T201
    raise SystemExit(2)


def listen(port: int, name: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
    except OSError as error:
        fail(f"{name} port {port} on {HOST} cannot be used: {error.strerror}")
    sock.listen(512)
    sock.setblocking(False)
    return sock


async def serve(given: argparse.Namespace) -> None:
    given.access_file.unlink(missing_ok=True)  # a stale file must not say that we listen
    web, mail = listen(given.port, "HTTP"), listen(given.smtp_port, "SMTP")
    try:
        history = load_history(given.seed, given.anchor, given.customers, given.data_file)
    except OSError as error:
        fail(f"the data file cannot be read: {error}")
    world = World(history)
    world.drop_folder = given.access_file.resolve().parent / "pos"

    def after_reset() -> None:
        if given.top_rate is not None:
            world.settings.top_rate = given.top_rate
        world.archive.on_push = hook.push if hook else None
        for platform in platforms:
            platform.reset()
        sink.reset()

    platforms = every_platform(world)
    official = next(one.access("") for one in platforms if one.platform == WechatOfficial.platform)

    def push_fault() -> Fault | None:
        return take(world.faults, WechatOfficial.platform, "push")

    hook = (
        Webhook(given.webhook, official["push_token"], given.webhook_mode, official["encoding_aes_key"], push_fault)
        if given.webhook
        else None
    )
    sink = MailSink(world, "nightmarket", secrets.token_hex(12))
    sink.folder = given.access_file.resolve().parent / "bounces"
    control = Control(world, secrets.token_hex(24), after_reset)
    begin(world)
    after_reset()  # only now: pushes of the history are archived, not sent again
    if given.now:
        try:
            moment = time.time() if given.now == "machine" else clock.parse_iso(given.now)
            world.clock.move(moment)
        except clock.ClockError as error:
            fail(f"--now: {error}")
    world.settle()
    gc.collect()
    gc.freeze()  # the history never becomes garbage; looking through it again would cost answers their speed

    app = App(world, control, platforms)
    config = uvicorn.Config(
        app,
        log_level="critical",
        access_log=False,
        lifespan="off",
        date_header=False,  # the platforms' clock is not the machine's
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    loop = asyncio.get_running_loop()
    mail_server = await loop.create_server(sink.server, sock=mail)
    running = asyncio.create_task(server.serve(sockets=[web]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    base = f"http://{HOST}:{web.getsockname()[1]}"
    access: dict[str, Any] = {
        "base_url": base,
        "control": {"url": f"{base}/control", "token": control.token},
        "clock": clock.iso(world.now()),
        "seed": given.seed,
        "anchor": given.anchor.isoformat(),
        **{platform.platform: platform.access(base) for platform in platforms},
        "smtp": {
            "host": HOST,
            "port": mail.getsockname()[1],
            "username": sink.username,
            "password": sink.password,
            "from_address": "hello@nightmarket.test",
            "bounce_address": BOUNCE_ADDRESS,
            "bounce_folder": str(sink.folder),
        },
    }
    _write_access(given.access_file, access)
    await running
    mail_server.close()


def _write_access(path: Path, access: dict[str, Any]) -> None:
    """Write the file in one step, readable by its owner only: it appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".draft")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(access, file, ensure_ascii=False, indent=2)
    draft.replace(path)


def fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: several times more answers a second."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def main() -> None:
    given = arguments()
    # It tells every connection that a password without TLS is dangerous; on 127.0.0.1 with a made-up password it is not.
    warnings.filterwarnings("ignore", message="Requiring AUTH while not requiring TLS")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also before the server has taken over
    try:
        with asyncio.Runner(loop_factory=fast_loop()) as runner:
            runner.run(serve(given))
    except KeyboardInterrupt:
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
