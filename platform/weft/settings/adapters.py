"""Where adapters are kept, what may be stored, and where versions may be imported from."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from weft.settings.fields import MIB, Settings, setting

_LINK_LOCAL = (ipaddress.ip_network("169.254.0.0/16"), ipaddress.ip_network("fe80::/10"))
# below at least two labels: "*.com" would be half of the internet
_HOST_RULE = re.compile(r"(\*\.(?=[^.:]+\.))?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*(:[0-9]{1,5})?")


@dataclass(frozen=True, kw_only=True)
class AdapterSettings(Settings):
    """Adapters are stored in `adapter_store` ("s3://bucket/prefix", at `s3_endpoint_url` if it is
    not Amazon's), or in a folder (None). A deleted version's files are kept for
    `version_retention_s`.

    Imports come from `hub_host`, which may lead on to `import_hosts` ("*.name": all below it) at
    public addresses, or at those in `import_networks`, and from `import_buckets`: "bucket" or
    "bucket/folder", where "{tenant}" is the tenant's id.
    """

    adapter_store: str | None = setting(None, "s3://bucket/prefix. Default: a folder below --data.")
    s3_endpoint_url: str | None = setting(
        None, "URL of an S3 server that is not Amazon's.", flag="--s3-endpoint"
    )
    max_upload_bytes: int = setting(
        1024 * MIB,
        "MiB of one adapter's tensors.",
        flag="--max-upload-mib",
        unit="MiB",
        above=0,
    )
    max_versions_per_tenant: int = setting(20_000, above=0)
    max_stored_bytes_per_tenant: int = setting(200 * 1024 * MIB, above=0)
    smoke_check: bool = setting(
        True, "Compare each new version's answer to a fixed prompt with the base's."
    )
    version_retention_s: float = setting(
        7 * 24 * 3600.0,
        "Days for which the files of deleted versions are kept.",
        flag="--retention-days",
        unit="days",
        at_least=0,
    )
    upload_ttl_s: float = setting(24 * 3600.0, above=0)
    sweep_interval_s: float = setting(600.0, above=0)
    hub_host: str = setting(
        "huggingface.co",
        "The host of the Hugging Face hub that versions are imported from.",
        flag="--hub",
    )
    import_hosts: tuple[str, ...] = setting(
        ("huggingface.co", "*.huggingface.co", "*.hf.co"),
        "A host that imports may read from; '*.name': all below it.",
        flag="--import-host",
    )
    import_networks: tuple[str, ...] = setting(
        (),
        "A network that is not public and may be imported from, as 10.1.0.0/16.",
        flag="--import-network",
    )
    import_buckets: tuple[str, ...] = setting(
        (),
        "bucket or bucket/folder; '{tenant}' in it: the tenant's id.",
        flag="--import-bucket",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for network in self.import_networks:
            try:
                parsed = ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"import_networks must be networks: {error}") from error
            if parsed.prefixlen == 0 or any(
                parsed.version == local.version and parsed.overlaps(local) for local in _LINK_LOCAL
            ):
                raise ValueError(
                    f"import_networks: {network} has the addresses of a cloud's metadata service, "
                    "which hands out credentials; name the networks that are needed"
                )
        for host in self.import_hosts:
            if _HOST_RULE.fullmatch(host) is None:
                raise ValueError(
                    f"import_hosts must be like name.example, *.name.example or "
                    f"name.example:8443, not {host!r}"
                )
