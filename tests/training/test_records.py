"""Records of runs: what a new option adds to them, so that runs begun without it go on."""

from deberta_jax.training.experiment import Finetune, difference, fingerprint, run_record


def test_options_of_reading_are_recorded_only_where_they_are_given():
    plain, given = Finetune(), Finetune(delimiter=";", skip_unlabelled=True)
    record, other = (run_record(experiment, {}) for experiment in (plain, given))
    assert not {"delimiter", "skip_unlabelled"} & record["experiment"].keys(), "as runs of before have it"
    assert other["experiment"] == record["experiment"] | {"delimiter": ";", "skip_unlabelled": True}
    assert difference(record, record) is None
    assert difference(other, record) == "its delimiter is None, now it is ';'"
    assert difference(record, other) == "its delimiter is ';', now it is None"
    assert fingerprint(record) != fingerprint(other)
