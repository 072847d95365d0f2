"""The verdict on an export, and the reason for it."""

from bench.export.check import choose_device, explain
from bench.judge import NOT_WITHIN, UNPROVEN, WITHIN
from bench.model.classification import MULTI, Classification
from bench.model.parity import ParityCounter

TASK = Classification(("joy", "fear"), MULTI, (0.5, 0.5))


def judged(**counts) -> tuple[str, str]:
    parity = ParityCounter(TASK, **{"items": 1, "decisions": 3200, "max_diff": 0.01} | counts)
    return parity.verdict(), explain(parity.verdict(), parity, parity)


def test_the_reason_for_a_verdict_has_its_numbers():
    assert judged()[0] == WITHIN
    verdict, reason = judged(changed=30)
    assert verdict == NOT_WITHIN and all(number in reason for number in ("30", "3,200", "0.1", "95%"))
    verdict, reason = judged(non_finite=7, tolerance=1)
    assert verdict == NOT_WITHIN and "7" in reason
    assert "95%" not in judged(tolerance=0)[1], "without chance"


def test_without_a_proof_the_reason_says_how_many_more_texts_decide():
    verdict, reason = judged(decisions=800)
    assert verdict == UNPROVEN and "800" in reason and "3.9" in reason
    verdict, reason = judged(changed=19, decisions=21_600)
    assert verdict == UNPROVEN and all(number in reason for number in ("19", "21,600", "0.1%"))


def test_rounding_is_within_tolerance_whatever_the_number_of_texts():
    verdict, reason = judged(decisions=10, precision="fp32", max_diff=1e-6)
    assert verdict == WITHIN and "0.0001" in reason
    assert judged(decisions=10, precision="fp16", max_diff=1e-6)[0] == UNPROVEN


def test_a_check_that_runs_on_the_cpu_anyway_does_not_ask_for_it(capsys):
    device, _ = choose_device("int8", None, 0, 1)
    assert device.gpu is None and "--device" not in capsys.readouterr().err
