"""Depth records: LLaVA's format, the same points in all kinds, the same bytes for the same seed."""

import json
import uuid

import numpy as np

from vistok.data.perception.depth_questions import DepthCoT, DepthPicture, DepthQA, DepthTemplates
from vistok.data.perception.markers import Marker
from vistok.train.conversations import read_conversations

DEPTH = np.tile(np.linspace(1, 255, 336), (336, 1))
PICTURE = DepthPicture("a.png", DEPTH, "a_marked.png")


def encode(depth):
    return f"<DEPTH_START><DEPTH_{int(depth[0, -1]) // 2}><DEPTH_END>"


def said(record):
    return record["conversations"][1]["value"]


def test_generation_says_the_map_of_the_plain_picture():
    made = DepthQA(encode).generation(PICTURE)
    assert made["image"] == "a.png" and said(made) == "<DEPTH_START><DEPTH_127><DEPTH_END>"
    assert made["conversations"][0] == {"from": "human", "value": "<image>\nWrite down the depth map of this picture."}
    assert uuid.UUID(made["id"]).version == 4


def test_reasoning_and_direct_are_about_the_same_points_and_agree():
    chain, direct = DepthCoT(encode).alternating([PICTURE])
    assert chain["markers"] == direct["markers"] and chain["label"] == direct["label"]
    assert chain["image"] == direct["image"] == "a_marked.png"
    best = max(direct["markers"], key=lambda marker: marker[3])
    assert said(direct) == f"({best[0]})" and said(chain).endswith(f"({best[0]})")
    for label, x, y, _ in chain["markers"]:
        assert f"Point {label} is located at (x = {x} y = {y})" in said(chain)
    assert said(chain).index("located") < said(chain).index("<DEPTH_START>") < said(chain).rindex("(")
    assert "336 x 336" in chain["conversations"][0]["value"]


def test_farthest_turns_the_answer_around():
    near, far = (DepthQA(encode, farthest=far).direct(PICTURE) for far in (False, True))
    values = {marker[0]: marker[3] for marker in near["markers"]}
    assert values[near["label"]] == max(values.values()) and values[far["label"]] == min(values.values())


def test_the_farthest_is_asked_for_in_words_where_it_is_the_answer():
    asked = {far: DepthCoT(encode, farthest=far).reasoning(PICTURE)["conversations"] for far in (False, True)}
    assert "closest to the camera" in asked[False][0]["value"] and "is highest at point" in asked[False][1]["value"]
    assert "farthest from the camera" in asked[True][0]["value"] and "is lowest at point" in asked[True][1]["value"]
    assert "farthest from the camera" in DepthQA(encode, farthest=True).direct(PICTURE)["conversations"][0]["value"]


def test_a_picture_without_points_gives_no_record():
    flat = DepthPicture("flat.png", np.full((336, 336), 7.0))
    assert DepthQA(encode).direct(flat) is None and DepthCoT(encode).reasoning(flat) is None
    assert list(DepthCoT(encode).alternating([flat])) == []


def test_records_depend_on_seed_and_picture_alone():
    def made(seed, pictures):
        return [json.dumps(one) for one in DepthCoT(encode, seed=seed).alternating(pictures)]

    other = PICTURE._replace(image="b.png")
    assert made(0, [PICTURE, other])[2:] == made(0, [other])
    assert made(0, [PICTURE]) != made(1, [PICTURE]) and made(0, [PICTURE])[0] != made(0, [other])[0]


def test_every_text_can_be_replaced_and_points_given():
    texts = DepthTemplates(
        reasoning="nearest ? {points}", reasoning_answer="{readings} then {label}", point="{label} {name}",
        reading="{label} {name} {code}", between=" , ",
    )  # fmt: skip
    chain = DepthCoT(encode, templates=texts, reading=lambda marker: f"<DEPTH_{marker.depth:.0f}>")
    made = chain.reasoning(PICTURE, [Marker("C", 1, 2, 3.0, "red star"), Marker("A", 4, 5, 6.0, "blue ring")])
    assert made["conversations"][0]["value"] == "<image>\nnearest ? C red star , A blue ring"
    assert said(made) == "C red star <DEPTH_3> , A blue ring <DEPTH_6> then A"


def test_records_read_back_as_conversations(tmp_path):
    file = tmp_path / "train.json"
    file.write_text(json.dumps(list(DepthCoT(encode).alternating([PICTURE]))))
    samples = list(read_conversations(file))
    assert [sample.image.name for sample in samples] == ["a_marked.png"] * 2 and "<image>" not in samples[0].question
