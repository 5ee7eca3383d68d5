"""The page on which metrics are read gives its address back when it is closed."""

from __future__ import annotations

import pytest

from hmarl.runtime.errors import HmarlError
from hmarl.runtime.metrics_page import Content, MetricsPage


def test_a_page_that_is_closed_gives_its_address_back() -> None:
    found = MetricsPage("127.0.0.1", 0, {"/metrics": lambda host: Content("text/plain", host.encode())})
    port = int(found.address.rpartition(":")[2])
    with pytest.raises(HmarlError, match=f"cannot listen on 127.0.0.1:{port}"):
        MetricsPage("127.0.0.1", port, {})
    found.close()
    MetricsPage("127.0.0.1", port, {}).close()
