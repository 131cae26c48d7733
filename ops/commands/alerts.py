"""`digits alert`: the channels that alerts go to."""

import typer

from digits.settings import load_settings
from ops.flow_runs import prepare

app = typer.Typer(help="Alerts and the channels they go to.", no_args_is_help=True)


@app.callback()
def alert() -> None:
    """Alerts and the channels they go to."""


@app.command("test")
def test() -> None:
    """Send a test alert to every channel of DIGITS_ALERT_URLS; exit code 1 unless all accept it."""
    prepare()
    from flows import alerts

    settings = load_settings()
    if not settings.alert_urls:
        raise ValueError(
            'DIGITS_ALERT_URLS names no channel; set it to Apprise addresses like ["slack://…", "mailto://…"]'
        )
    message = "This is a test by `digits alert test`: alerts of this platform arrive here."
    deliveries = alerts.deliver(settings, alerts.Alert("test", "digits", message))
    for delivery in deliveries:
        print(
            f"{delivery.channel} " + (f"failed: {delivery.problem}" if delivery.problem else "accepted the test alert")
        )
    if any(delivery.problem for delivery in deliveries):
        raise SystemExit(1)
