"""Two hosts, one of which is cut off in the middle, where network namespaces can be made."""

from pathlib import Path

import pytest
from tools.chaos import STUDY
from tools.hosts import STEPS, NoHostsError, cut_off, hosts


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_hosts_end_when_one_is_cut_off_and_go_on_to_the_same_bits(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(STUDY.format(sequences=96, steps=STEPS, scans="", harvests="", arms="", evaluation=""))
    try:
        with hosts() as names:
            assert cut_off(names, study, tmp_path).startswith("cut off: both ended with a sentence")
    except NoHostsError as error:
        pytest.skip(f"two hosts cannot be made here: {error}")
