import http.client
import json

import pytest

from .conftest import TOKEN, build_run, record_of, write_data


@pytest.mark.parametrize(
    "path", ["/", f"/{TOKEN}x/", f"/{TOKEN[:-1]}/", "/x/list", "/favicon.ico", f"//{TOKEN}/", "/%00/"]
)
def test_requests_without_the_token_are_refused(served, path):
    status, headers, body = served.ask(path, token="")
    assert status == 403 and headers["x-content-type-options"] == "nosniff"
    assert "open the address that tagseg printed" in json.loads(body)["error"]


def test_the_server_listens_only_on_127_0_0_1(served):
    for address in ("127.0.0.2", "::1"):
        with pytest.raises(OSError):
            http.client.HTTPConnection(address, served.port, timeout=5).request("GET", f"/{TOKEN}/")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "localhost@evil"]
)
def test_other_host_names_are_refused(served, host):
    assert served.ask("list", host=host)[0] == 403


def test_a_forwarded_port_is_allowed(served):
    assert served.ask("list", host="localhost:9999")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1"])
def test_writes_of_other_pages_are_refused(served, origin):
    body = json.dumps({"id": "img0", "verdict": "accepted", "off": [], "threshold": 0.5})
    assert served.post(body, origin=origin) == (403, {"error": "Only the review page itself may store decisions."})
    assert served.list()["counts"]["accepted"] == 0


def test_writes_require_an_origin_and_post(served):
    assert served.ask("decide", method="POST", body="{}", content_type="application/json")[0] == 403
    assert served.ask("decide?id=img0&verdict=accepted")[0] == 405


@pytest.mark.parametrize(
    "path",
    ["../run/settings.toml", "%2e%2e/settings.toml", "..%2fsettings.toml", "settings.toml", "/etc/passwd",
     "photo/img0", "static/../settings.toml", "thumb/../../data/img0.png"],
)  # fmt: skip
def test_paths_lead_nowhere(served, path):
    assert served.ask(path)[0] == 404


@pytest.mark.parametrize("kind", ["photo", "thumb", "mask"])
@pytest.mark.parametrize(
    "sample_id",
    ["", "nobody", "../data/img0", "..%2Fdata%2Fimg0", "%2Fetc%2Fpasswd", "img0.png", "img0%00", "./img0"],
)  # fmt: skip
def test_ids_are_looked_up_and_never_part_of_a_path(served, kind, sample_id):
    status, _, body = served.ask(f"{kind}?id={sample_id}")
    assert (status, json.loads(body)) == (404, {"error": "id: no such image in this run"})


def test_links_outside_the_folders_are_not_followed(tmp_path, serve):
    run = build_run(tmp_path / "one")
    outside = build_run(tmp_path / "two")
    data = tmp_path / "one" / "data"
    link = data / "img0.png"
    link.unlink()
    link.symlink_to(tmp_path / "two" / "data" / "img0.png")
    (data / "folder").symlink_to(tmp_path / "two" / "data")
    mask = run.masks / "img1.png"
    mask.unlink()
    mask.symlink_to(outside.masks / "img1.png")
    (data / "inside.png").symlink_to(data / "img2.png")
    records = [record_of(f"img{i}", data / f"img{i}.png") for i in range(3)]
    records += [record_of("by-folder", data / "folder" / "img3.png"), record_of("inside", data / "inside.png")]
    write_data(run, [*records, record_of("up", data / ".." / ".." / "two" / "data" / "img3.png")])
    served = serve(run)
    for path in (
        "photo?id=img0",
        "thumb?id=img0",
        "mask?id=img0&off=1",
        "mask?id=img1",
        "photo?id=by-folder",
        "photo?id=up",
    ):
        status, _, body = served.ask(path)
        assert status == 409 and b"leads outside the run and the data folder" in body, path
    assert served.ask("photo?id=img1")[0] == served.ask("photo?id=inside")[0] == 200
    assert served.decide("img1", "accepted")[0] == 409
    assert served.list()["counts"]["accepted"] == 0


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("", 400, "expected JSON"),
        ("{", 400, "expected JSON"),
        ("[" * 5000, 400, "expected JSON"),
        ("[]", 400, "expected a JSON object"),
        ("{}", 404, "no such image"),
        ('{"id": 3}', 404, "no such image"),
        ('{"id": ["img0"]}', 404, "no such image"),
        ('{"id": "img0"}', 400, "expected ['id', 'off', 'threshold', 'verdict']"),
        ('{"id": "img0", "verdict": "fine", "off": [], "threshold": 0.5}', 400, "verdict: got 'fine', expected open"),
        ('{"id": "img0", "verdict": [], "off": [], "threshold": 0.5}', 400, "verdict: got []"),
        ('{"id": "img0", "verdict": "open", "off": 1, "threshold": 0.5}', 400, "off: got 1, expected a list"),
        ('{"id": "img0", "verdict": "open", "off": [3], "threshold": 0.5}', 400, "off: got [3]"),
        ('{"id": "img0", "verdict": "open", "off": [true], "threshold": 0.5}', 400, "off: got [True]"),
        ('{"id": "img0", "verdict": "open", "off": [], "threshold": 1}', 400, "threshold: got 1"),
        ('{"id": "img0", "verdict": "open", "off": [], "threshold": NaN}', 400, "threshold: got nan"),
        ('{"id": "img0", "verdict": "open", "off": [], "threshold": "0.5"}', 400, "threshold: got '0.5'"),
        ('{"id": "img0", "verdict": "open", "off": [], "threshold": true}', 400, "threshold: got True"),
        ('{"id": "' + "x" * 20_000 + '"}', 413, "at most 16384 bytes"),
    ],
)  # fmt: skip
def test_invalid_decisions_are_refused_and_not_stored(served, run, body, status, message):
    found, answer = served.post(body)
    assert found == status and message in answer["error"] and "Traceback" not in answer["error"]
    assert not run.decisions_file.exists()


def test_other_content_types_are_refused(served):
    assert served.post('{"id": "img0"}', content_type="text/plain")[0] == 415


@pytest.mark.parametrize(
    "query",
    ["list?verdict=mine", "list?from=x", "list?from=--5", "list?from=1e3", "list?class=9999999999",
     "mask?id=img0&off=x", "mask?id=img0&off=300", "mask?id=img0&threshold=2", "mask?id=img0&threshold=nan"],
)  # fmt: skip
def test_invalid_queries_are_refused(served, query):
    status, _, body = served.ask(query)
    assert status == 400 and "expected" in json.loads(body)["error"]


def test_responses_are_not_cached_or_sniffed(served):
    for path in ("", "list", "photo?id=img0", "mask?id=img0", "thumb?id=img0"):
        status, headers, _ = served.ask(path)
        assert status == 200 and headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "server" not in headers
