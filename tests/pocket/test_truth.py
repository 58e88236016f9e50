"""How much of a component a factor explains: against sums of squares written out, and at both ends of the scale."""

import pytest
import torch

from unweave.errors import UnweaveError
from unweave.pocket.truth import explained


def slow(values, codes):
    """One component at a time, one image at a time: (between - (k - 1) * mean square within) / total."""
    kept = [n for n, code in enumerate(codes.tolist()) if code >= 0]
    found = []
    for component in range(values.shape[1]):
        rows = [values[n, component].double() for n in kept]
        mean = sum(rows) / len(rows)
        total = sum(float((row - mean).square().sum()) for row in rows)
        between, kinds = 0.0, sorted({int(codes[n]) for n in kept})
        for kind in kinds:
            own = [row for n, row in zip(kept, rows, strict=True) if codes[n] == kind]
            between += len(own) * float((sum(own) / len(own) - mean).square().sum())
        error = (total - between) / (len(kept) - len(kinds))
        found.append((between - (len(kinds) - 1) * error) / total)
    return torch.tensor(found, dtype=torch.float64)


def test_it_is_the_corrected_share_of_the_sums_of_squares():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-1, 4, (60,), generator=generator)
    values = torch.randn(60, 5, 3, generator=generator) + 0.5 * codes[:, None, None]
    torch.testing.assert_close(explained(values, codes), slow(values, codes))


def test_a_component_that_is_the_factor_is_explained_whole_and_one_that_never_varies_not_at_all():
    codes = torch.arange(40) % 5
    of_the_factor = torch.nn.functional.one_hot(codes, 5).float()
    values = torch.stack([of_the_factor, torch.ones(40, 5)], 1)
    assert explained(values, codes).tolist() == pytest.approx([1.0, 0.0])


def test_noise_is_at_zero_on_average_however_many_values_there_are():
    noise = torch.randn(120, 400, 4, generator=torch.Generator().manual_seed(1))
    found = explained(noise, torch.arange(120) % 40)
    assert abs(float(found.mean())) < 0.01
    assert float(found.min()) < 0


def test_images_without_the_factor_are_left_out():
    values = torch.randn(30, 2, 3, generator=torch.Generator().manual_seed(2))
    codes = torch.arange(30) % 3
    with_more = torch.cat([values, 100 * torch.ones(4, 2, 3)])
    both = explained(values, codes), explained(with_more, torch.cat([codes, -torch.ones(4).long()]))
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("codes", [[-1, -1, -1], [0, 0, 0], [0, 1, 2]])
def test_a_factor_that_cannot_be_judged_is_refused(codes):
    with pytest.raises(UnweaveError, match="explains nothing"):
        explained(torch.randn(3, 2, 4), torch.tensor(codes))
