"""Check the site's set-up, image and local disk on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator

from shardmark.config.schema import Site
from shardmark.doctor.finding import Finding
from shardmark.doctor.place_findings import check_folder
from shardmark.errors import UserError
from shardmark.launching.site import make_local_folder, site_environment, why_not_in_image

ADVICE = "mend site: in the configuration"


def check_site(site: Site) -> Iterator[Finding]:
    """Check whether the set-up and the image run here, and whether the local disk is writable."""
    settings = [name for name in Site.model_fields if getattr(site, name)]
    if not settings:
        return
    try:
        reason = why_not_in_image(site, site_environment(site, os.environ))
        folder = make_local_folder(site.scratch)
    except UserError as error:
        reason = str(error)
    if reason:
        yield Finding("FAIL", "site", reason, ADVICE)
        return
    yield Finding("ok", "site", f"{', '.join(settings)} can be used")
    if folder is not None:
        yield from check_folder("site.scratch", folder)
