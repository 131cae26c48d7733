"""The gallery shows each digit plainly and then what the version finds hardest, whatever the version is worth."""

import numpy as np
from serving import Service

from digits.reference import Reference
from services import response_content


def test_ten_plain_and_ten_hard_digits(sample: Reference) -> None:
    chosen = response_content.samples(sample)
    assert [int(entry["label"]) for entry in chosen[:10]] == list(range(10)) and len(chosen) == 20
    confidence = {
        image.tobytes(): value for image, value in zip(sample.images, sample.probabilities.max(1), strict=True)
    }
    plain, hard = ([confidence[entry["image"].tobytes()] for entry in part] for part in (chosen[:10], chosen[10:]))
    assert min(plain) > 0.9 and max(hard) == np.sort(sample.probabilities.max(1))[9]
    for entry in chosen:
        index = np.flatnonzero((sample.images == entry["image"]).all((1, 2)))
        assert entry["label"] in sample.labels[index]


def test_a_version_that_knows_only_one_digit_still_has_a_gallery(sample: Reference) -> None:
    poor = np.zeros_like(sample.probabilities)
    poor[:, 3] = 1
    chosen = response_content.samples(Reference(sample.images, sample.labels, poor))
    assert len(chosen) in (10, 11) and chosen[0]["label"] == 3


def test_the_service_offers_them_with_the_version(service: Service) -> None:
    answer = service.client.get("/samples").json()
    assert answer["model_version"] == "1" and len(answer["samples"]) == 20
    assert np.array(answer["samples"][4]["image"]).shape == (28, 28) and answer["samples"][4]["label"] == 4
