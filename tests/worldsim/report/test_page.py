"""The report tells everything that a summary holds, carries all it needs, and trusts no text."""

import html
import json
import re

import numpy as np
import pytest

from worldsim.report import video
from worldsim.report.page import write_report

HOSTILE = "push <script>alert('x')</script> & \"go\""

SUMMARY = {
    "seed": 7,
    "physics_success": {
        "before": {"rate": 0.4121, "ci95": [0.3702, 0.4553], "episodes": 512},
        "after": {"rate": 0.7136, "ci95": [0.6724, 0.7511], "episodes": 511},
        "paired_gain": {"points": 30.15, "ci95": [25.04, 35.26]},
    },
    "learners": {
        "analytic": {
            "rate": 0.6937,
            "ci95": [0.6521, 0.7325],
            "episodes": 510,
            "paired_gain": {"points": 28.16, "ci95": [23.04, 33.23]},
            "wall_s": 64.21,
            "imagined_rate": 0.7917,
        },
        "ppo": {
            "rate": 0.5818,
            "ci95": [0.5386, 0.6237],
            "episodes": 509,
            "paired_gain": {"points": -17.02, "ci95": [-21.94, -12.13]},
            "wall_s": 211.74,
            "imagined_rate": 0.6612,
        },
    },
    "physics_steps": {"collect_demos": 2560, "collect_play": 10241, "post_train": 0, "evaluate": 61442},
    "imagination": {
        "against_physics": {
            "agreement": 0.8215,
            "false_success": 0.0996,
            "missed_success": 0.0789,
            "counts": {"both_succeed": 310, "false_success": 51, "missed_success": 41, "both_fail": 113},
            "ci95": [0.7861, 0.8522],
            "kappa": 0.5871,
            "kappa_ci95": [0.512, 0.658],
        },
        "rate": 0.7053,
        "error_points": -0.83,
        "self_agreement": {
            "physics": {"agreement": 0.8012, "ci95": [0.7644, 0.8335], "kappa": 0.544, "kappa_ci95": [0.463, 0.621]},
            "dream": {"agreement": 0.9123, "ci95": [0.8847, 0.9338], "kappa": 0.803, "kappa_ci95": [0.741, 0.858]},
        },
        "always_success": {"agreement": 0.7136, "false_success": 0.2864, "missed_success": 0.0, "kappa": 0.0},
        "calibration": {
            "brier": 0.1537,
            "curve": [
                {"predicted": 0.2, "observed": 0.3, "ci95": [0.2, 0.4], "episodes": 90},
                {"predicted": 0.9, "observed": 0.8, "ci95": [0.7, 0.9], "episodes": 420},
            ],
        },
    },
    "circumstances": {"precision": "32-true", "device": "cpu", "num_envs": 128, "threads": 2},
    "reflector": {"auc_real": 0.9931, "auc_imagined": 0.9422, "f1": 0.9513, "threshold": 0.6344, "ece": 0.0216},
    "world_model": {
        "frames_per_s": 8123.4,
        "psnr_at_40": 27.31,
        "block_error_m_at_40": 0.0123,
        "psnr_by_step": [33.0, 30.0, 27.31],
    },
    "wall_s": {"collect": 57.01, "world_model": 240.42},
    "peak_rss_mb": 1834.2,
    "versions": {"torch": "2.13.0", "lightning": "2.6.6"},
    "command": f"worldsim demo seed=7 instruction={HOSTILE}",
}

TOLD = """
seed 7|41.2 %|37.0 – 45.5 %|512|71.4 %|67.2 – 75.1 %|511|+30.1|+25.0 … +35.3
69.4 %|65.2 – 73.2 %|510|+28.2|+23.0 … +33.2|64.2 s|79.2 %
58.2 %|53.9 – 62.4 %|509|-17.0|-21.9 … -12.1|211.7 s|66.1 %
2,560|10,241|61,442|82.2 %|10.0 %|7.9 %|310|51|41|113
0.993|0.942|0.951|0.634|0.022|8,123 frames/s|PSNR after 40 steps|27.3 dB|0.012 m
78.6 – 85.2 %|0.587|0.51 – 0.66|80.1 %|76.4 – 83.4 %|0.544|91.2 %|0.803|71.4 %|28.6 %|70.5 %|-0.8 points off|0.154
precision 32-true on the cpu, 128 environments, 2 threads
57.0 s|240.4 s|297.4 s|1,834 MB|torch 2.13.0|lightning 2.6.6
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "config.yaml").write_text(f"instruction: {HOSTILE}\n")
    media = tmp_path / "media"
    media.mkdir()
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    video.write_mp4(media / "beside.mp4", frames, fps=10)
    (media / "a_strip.png").write_bytes(video.png_bytes(video.filmstrip(frames, 2)))
    (media / "captions.json").write_text(json.dumps({"beside.mp4": HOSTILE}))
    stage = tmp_path / "stages" / "world_model"
    stage.mkdir(parents=True)
    rows = [
        "epoch,step,train_loss,val_$x_1$<b>,once",
        *(f"0,{i},{2.0**-i},," for i in range(12)),
        "0,5,,20.0,",
        "0,9,,nan,",
        "0,11,,21.5,3",
    ]
    (stage / "metrics.csv").write_text("\n".join(rows))
    return tmp_path


def text_of(page):
    """What a reader sees: the page without styles, tags and embedded files."""
    return html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL)))


def test_tells_every_number(run):
    text = " ".join(text_of(write_report(run).read_text()).split())
    missing = [told for told in re.split(r"[|\n]", TOLD.strip()) if not re.search(rf"(?<![\d.]){re.escape(told)}(?!\.?\d)", text)]
    assert not missing


def test_bars_carry_the_rate_and_its_interval(run):
    page = write_report(run).read_text()
    assert len(re.findall(r'class="fill', page)) == 4
    assert 'class="fill first" style="width: 41.21%"' in page
    assert 'class="whisker" style="left: 37.02%; width: 8.51%"' in page


def test_gain_stands_beside_the_policy_that_made_it(run):
    text = " ".join(text_of(write_report(run).read_text()).split())
    assert "After 71.4 % 67.2 – 75.1 % 511 +30.1 +25.0 … +35.3 – –" in text
    assert "PPO 58.2 % 53.9 – 62.4 % 509 -17.0 -21.9 … -12.1 66.1 % 211.7 s" in text


def test_after_is_not_repeated_when_it_is_one_of_the_learners(run):
    summary = json.loads((run / "summary.json").read_text())
    summary["learners"]["ppo"]["rate"] = summary["physics_success"]["after"]["rate"]
    (run / "summary.json").write_text(json.dumps(summary))
    assert len(re.findall(r'class="fill', write_report(run).read_text())) == 3


def test_post_training_without_physics_is_highlighted(run):
    assert re.search(r'<tr class="zero"><th scope="row">Post train[^<]*</th><td>0</td>', write_report(run).read_text())
    summary = json.loads((run / "summary.json").read_text())
    summary["physics_steps"]["post_train"] = 5
    (run / "summary.json").write_text(json.dumps(summary))
    page = write_report(run).read_text()
    assert 'class="zero"' not in page
    assert "no step of physics" not in page


def test_fresh_data_is_counted_in_the_first_paragraph(run):
    assert "recording fresh episodes" not in write_report(run).read_text()
    summary = json.loads((run / "summary.json").read_text())
    summary["physics_steps"] |= {"collect_policy_1": 9000, "collect_policy_2": 345}
    (run / "summary.json").write_text(json.dumps(summary))
    assert "took 9,345." in " ".join(write_report(run).read_text().split())


def test_is_self_contained(run):
    page = write_report(run).read_text()
    assert not re.findall(r"https?://[^\s]{0,40}", page)
    sources = re.findall(r"(?:src|href|poster|data)=[\"']?(.{0,20})", page)
    assert {source.split(";")[0] for source in sources if not source.startswith("#")} >= {"data:image/png", "data:video/mp4"}
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"@import|url\((?!#)|<script|<link(?! rel=\"icon\" href=\"data:)", page)
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "media", "report.html", "stages", "summary.json"]


def test_escapes_hostile_text(run):
    page = write_report(run).read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 3  # caption, command and configuration
    assert ">val_$x_1$&lt;b&gt;</text>" in page  # a metric's name, through matplotlib


def test_captioned_media_come_first_and_others_get_their_name(run):
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", write_report(run).read_text())
    assert [html.unescape(caption) for caption in captions] == [HOSTILE, "A strip"]


def test_curves_follow_the_pages_colours(run):
    page = write_report(run).read_text()
    assert page.count("<svg") == 4  # PSNR by step, calibration, train_loss, val_psnr; one point makes no curve
    assert "var(--accent)" in page[page.index("<svg") :]
    assert "#0a0b0" not in page


def test_missing_pieces_are_left_out(tmp_path):
    (tmp_path / "summary.json").write_text('{"physics_success": {"before": {"rate": 0.25}}, "reflector": {"auc_real": NaN}}')
    text = text_of(write_report(tmp_path).read_text())
    assert "25.0 %" in text
    assert "AUC on real frames" in text
    assert "nan" not in text.lower()
    assert not re.search("Training|What it cost|Real beside dream|Configuration|Imagination against", text)


def test_empty_summary_makes_a_page(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    assert write_report(tmp_path).read_text().rstrip().endswith("</html>")


def test_same_run_same_page(run):
    assert write_report(run).read_text() == write_report(run).read_text()


def test_missing_summary_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"summary\.json is missing"):
        write_report(tmp_path)
