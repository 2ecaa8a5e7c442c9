"""A picture to edit is described in the words of the model's own."""

import torch

import ebbtide as ebb


def test_the_condition_of_a_source_is_read_like_the_run_s_own() -> None:
    model = ebb.load("emoji")
    told = model.condition(
        {"prompt": "dog face", "from": {"prompt": "cat face"}, "source": torch.zeros(3, 32, 32)[None]}, 2
    )
    assert torch.equal(told["from"]["words"], model.condition("cat face", 2)["words"])
    assert not torch.equal(told["from"]["words"], told["words"])
    again = model.condition(told, 2)  # what it made, it takes
    assert torch.equal(again["from"]["words"], told["from"]["words"])
    digits = ebb.load("digits").condition({"label": [8, 8], "from": {}}, 2)
    assert torch.equal(digits["from"]["label"], ebb.load("digits").condition(None, 2)["label"])
