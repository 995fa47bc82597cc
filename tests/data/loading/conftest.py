"""The encoder of the tests of packing: the golden tiny tokenizer, small towers."""

import pytest
from words import make_encoder


@pytest.fixture(scope="session")
def encoder(golden):
    return make_encoder(golden)
