"""Recorded rollout trees in the browser: `data` reads runs, `app` serves them to this machine, `static/` shows them."""
