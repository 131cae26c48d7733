"""`digits up`, `down` and `status`: the platform on this machine."""

from digits.settings import load_settings


def up() -> None:
    """Start the whole platform on this machine and stay in the foreground; Ctrl-C stops it."""
    from ops import bootstrap

    bootstrap.up(load_settings())


def down() -> None:
    """Stop a platform that `digits up` started in another terminal."""
    from ops import processes

    settings = load_settings()
    print("stopped" if processes.stop(settings) else f"no platform runs on {settings.home}")


def status() -> None:
    """Show the servers, their addresses and states, and the model version that serves."""
    from ops import bootstrap

    if not bootstrap.print_status(load_settings()):
        raise SystemExit(1)
