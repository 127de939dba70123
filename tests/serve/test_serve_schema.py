"""Does the server keep to its own documentation, whatever it is sent? Requests are drawn from the OpenAPI schema.

A long run, beside a server that was started with VOKEN_TOKEN=t on a collection that may be spoilt:

    schemathesis run http://127.0.0.1:7860/openapi.json --checks all --max-examples 1000 --continue-on-failure \\
        -H "Authorization: Bearer t" --suppress-health-check all

It reports one failure that is none: random bytes sent to /search/picture fit the schema, but are no picture (415).
Here real pictures are drawn.
"""

import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.engine import from_schema
from schemathesis.engine.events import EngineFinished, FatalError, NonFatalError, ScenarioFinished

from builders.served import TOKEN, Served, as_file, noise

EXAMPLES = 6
"""Per operation and phase, besides what is always tried (limits, methods, types)."""
NOT_IN_THE_SCHEMA = ("no picture has this field", "a search with plus or minus has neither")
"""Refusals of requests that fit the schema: it knows neither the collection's fields, nor which fields go together."""


@pytest.fixture
def pictures():
    """What stands for a picture of any kind: the server goes by content."""
    drawn = st.sampled_from([as_file(noise(8)), as_file(noise(8).convert("L"), "GIF")])
    for kind in ("png", "jpeg", "webp", "gif", "tiff", "avif", "bmp"):
        schemathesis.openapi.media_type(f"image/{kind}", drawn)


def failures(event):
    for case_id, checks in event.recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                answer = event.recorder.interactions[case_id].response
                if (
                    answer is not None
                    and check.name == "positive_data_acceptance"
                    and any(reason in answer.text for reason in NOT_IN_THE_SCHEMA)
                ):
                    continue
                response = f"{answer.status_code} {answer.text[:300]}" if answer is not None else ""
                request = event.recorder.cases[case_id].value.as_curl_command()
                yield f"{check.name}: {check.failure_info.failure}\n{response}\n{request[:2000]}"


@pytest.mark.slow
def test_every_answer_is_one_that_is_documented(pictures, tmp_path):
    problems, tried = [], set()
    with Served.of(tmp_path) as served, served.client():
        schema = schemathesis.openapi.from_asgi("/openapi.json", served.app, headers={"Host": "localhost"})
        schema.config.update(headers={"Host": "localhost", **TOKEN})
        schema.config.seed = 0
        schema.config.generation.update(max_examples=EXAMPLES, database="none")
        for event in from_schema(schema).execute():
            if isinstance(event, ScenarioFinished):
                problems += failures(event)
                tried |= {case.value.operation.label for case in event.recorder.cases.values()}
            elif isinstance(event, (NonFatalError, FatalError)):
                raise event.value if isinstance(event, NonFatalError) else event.exception
        assert isinstance(event, EngineFinished)
        operations = {
            f"{method.upper()} {path}" for path, methods in served.app.openapi()["paths"].items() for method in methods
        }
    assert not problems, "\n\n".join(problems)
    assert tried == operations
    assert len(operations) == 15
