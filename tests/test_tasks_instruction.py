"""Instructions: prompts made here, public formats, strict and loose, and agreement with IFEval's documented rules."""
# ruff: noqa: RUF001 - look-alikes are tested

import json
import re
from pathlib import Path

import numpy as np
import pytest

from onepolicy.config import ConfigError, DomainConfig, TasksConfig
from onepolicy.tasks import build_source, instruction_prompts
from onepolicy.tasks.check import check_domains
from onepolicy.tasks.instruction_checks import CHECKS, followed, validated
from onepolicy.tasks.instruction_prompts import PUT, compatible
from onepolicy.tasks.instruction_small import ALPHABET
from onepolicy.tasks.instruction_text import language, sentences, unmasked, visible
from onepolicy.types import Task

DATA = Path(__file__).parent / "data"
WORDS, SENTENCES = "length_constraints:number_words", "length_constraints:number_sentences"
AT_LEAST_3, LESS_THAN_3 = {"num_words": 3, "relation": "at least"}, {"num_words": 3, "relation": "less than"}
FREQUENCY, LETTER = "keywords:frequency", "keywords:letter_frequency"
PARAGRAPHS, NTH = "length_constraints:number_paragraphs", "length_constraints:nth_paragraph_first_word"
HIGHLIGHTS, BULLETS = "detectable_format:number_highlighted_sections", "detectable_format:number_bullet_lists"
POSTSCRIPT, PLACEHOLDERS = "detectable_content:postscript", "detectable_content:number_placeholders"
SECTIONS, CAPITAL = "detectable_format:multiple_sections", "change_case:capital_word_frequency"
TWO, REPEAT, END = "combination:two_responses", "combination:repeat_prompt", "startend:end_checker"
SECOND = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "river"}
ENGLISH = "the river runs down to the old town and nobody knows since when"


def source(seed=0, **options):
    return build_source("i", TasksConfig(kind="instruction", **options), seed)


def prompt(task):
    return task.messages[-1]["content"]


def by_row(records, number):
    return next(task for task in map(records.draw, range(10)) if task.metadata["row"] == number)


@pytest.mark.parametrize("scale", ["plain", "small"])
def test_every_worked_out_answer_follows_all_constraints_of_its_prompt(scale):
    prompts = source(scale=scale)
    tasks = [prompts.draw(index) for index in range(400)]
    assert [prompt(task) for task in tasks if prompts.grade(task, prompts.gold(task)).reward < 1] == []
    names = {name for task in tasks for name, _ in task.reference}
    assert names == (set(PUT) if scale == "plain" else {name for name in CHECKS if name.startswith("letters:")})
    assert max(len(prompt(task)) for task in tasks) < 1000
    echoed = [
        prompt(task) for task in tasks if prompts.grade(task, prompt(task)).reward or prompts.grade(task, "").reward
    ]
    assert echoed == []


def test_gold_answers_score_in_the_grading_process():
    scales = {scale: DomainConfig(tasks={"kind": "instruction", "scale": scale}) for scale in ("plain", "small")}
    scales["records"] = DomainConfig(tasks={"kind": "instruction", "path": str(DATA / "ifeval.jsonl")})
    reports = check_domains(scales, n=40)
    assert all(report.ok and report.empty_reward == 0.0 for report in reports.values())
    assert reports["plain"].warnings == reports["small"].warnings == ()
    assert reports["records"].without_gold == 40


def small_answer(question):
    """A second implementation of the small scale: the answer that its rule gives."""
    first, *rest = question.split(";")
    count, said = int(first.removesuffix(" letters")), dict(part.rpartition(" ")[::2] for part in rest)
    names = [name for name in said.values() if name in ("sorted", "upper", "brackets")]
    times = next((int(key) for key in said if key.isdigit()), 0)
    counted = said[str(times)] * times if times else ""
    middle, start, end = said.get("use", "") + counted, said.get("start", ""), said.get("end", "")
    for letter in "abcdefghijklmnopqrstuvwxyz":
        if len(start + middle + end) < count and letter not in counted + said.get("no", ""):
            middle += letter
    word = start + ("".join(sorted(middle)) if "sorted" in names else middle) + end
    return ("[{}]" if "brackets" in names else "{}").format(word.upper() if "upper" in names else word)


def test_small_answers_have_a_rule_that_a_small_model_can_learn():
    assert small_answer("6 letters;use kq;no b;start x") == "xkqacd"
    assert small_answer("5 letters;2 a;upper") == "AABCD"
    small = source(scale="small")
    for index in range(300):
        task = small.draw(index)
        parts = prompt(task).split(";")
        if sum(part in ("sorted", "upper", "brackets") for part in parts) < 2:  # the dictionary above keeps one
            assert small.gold(task) == small_answer(prompt(task))
        assert 1 <= len(parts) <= 4 and len(small.gold(task)) <= 16
        assert set(prompt(task) + small.gold(task)) <= set(ALPHABET)


def test_a_draw_depends_on_options_seed_and_index_alone():
    small = source(scale="small")
    assert [prompt(small.draw(i)) for i in (0, 1, 10**12)] == [
        "7 letters;end d;upper;2 s",
        "5 letters;end b;no z;start e",
        "8 letters;brackets;sorted;use rw",
    ]
    assert source().draw(5) == source().draw(5) and source(seed=1).draw(5) != source().draw(5)


def test_the_number_of_constraints_is_as_asked():
    small = source(scale="small", min_constraints=2, max_constraints=3)
    assert {prompt(small.draw(i)).count(";") for i in range(60)} == {1, 2}
    plain = source(min_constraints=4)
    counts = [len(plain.draw(i).reference) for i in range(60)]
    assert max(counts) == 4 and counts.count(4) > 50  # fewer where the first one goes with no other


def test_constraints_of_one_prompt_go_together():
    assert not compatible("change_case:english_capital", "change_case:english_lowercase")
    assert not compatible("detectable_format:json_format", "startend:quotation")
    assert not compatible("keywords:existence", "language:response_language")
    assert compatible("punctuation:no_comma", "combination:repeat_prompt")
    for index in range(200):
        names = [name for name, _ in source().draw(index).reference]
        assert all(a == b or compatible(a, b) for a in names for b in names) and len(set(names)) == len(names)
    assert all(compatible(a, b) == compatible(b, a) for a in PUT for b in PUT)
    known = set(instruction_prompts.CONFLICTS) | set(instruction_prompts.ONLY_WITH)
    for names in [*instruction_prompts.CONFLICTS.values(), *instruction_prompts.ONLY_WITH.values()]:
        known |= names
    assert known | set.union(*instruction_prompts.GROUPS) <= set(PUT) <= set(CHECKS)


def test_corrupt_demonstrations_break_a_constraint():
    flawed = source(scale="small", corrupt=1.0)
    tasks = [flawed.draw(index) for index in range(60)]
    assert not any(flawed.grade(task, flawed.demonstration(task)).reward for task in tasks)
    half = source(scale="small", corrupt=0.5)
    assert 15 < sum(half.demonstration(half.draw(i)) == half.gold(half.draw(i)) for i in range(60)) < 45


def test_ifeval_records_load_as_they_are():
    records = source(path=str(DATA / "ifeval.jsonl"))
    task = by_row(records, 1)
    assert task.reference == (
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}),
        ("keywords:frequency", {"relation": "at least", "keyword": "river", "frequency": 1}),
    )
    assert records.grade(task, "* The Elbe is a river.\n* The Oder too.").reward == 1.0
    wrong = records.grade(task, "* The Elbe is a river.")
    assert (wrong.reward, wrong.reason) == (0.0, "not followed: detectable_format:number_bullet_lists")
    assert records.gold(task) is None and records.demonstration(task) is None


def test_ifbench_records_load_and_those_without_a_check_are_refused_or_skipped():
    with pytest.raises(ValueError, match=r"row 1: there is no check for the constraint 'words:start_verb': .*skip"):
        records = source(path=str(DATA / "ifbench.jsonl"))
        by_row(records, 1)
    records = source(path=str(DATA / "ifbench.jsonl"), unchecked="skip")
    assert {records.draw(i).reference[0][0] for i in range(9)} == {"count:numbers", "words:repeats"}
    assert records.draw(0).reference[0][1] in ({"N": 2}, {"small_n": 2})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "x"}', "its columns prompt lack instruction_id_list, kwargs"),
        ('{"prompt": "x", "instruction_id_list": ["a", "b"], "kwargs": [{}]}', "2 constraints and 1 sets of arguments"),
        (
            '{"prompt": "x", "instruction_id_list": ["keywords:existance"], "kwargs": [{}]}',
            "no check for the constraint 'keywords:existance': did you mean 'keywords:existence'?",
        ),
        (
            '{"prompt": "x", "instruction_id_list": ["keywords:existence"], "kwargs": [{}]}',
            "keywords:existence: missing a required argument: 'keywords'",
        ),
    ],
)
def test_faulty_records_are_refused_with_their_row(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(row)
    with pytest.raises(ValueError, match=r"rows.jsonl, line 1, row 0: .*" + message):
        source(path=str(path)).draw(0)


@pytest.mark.parametrize(
    ("name", "arguments", "taken"),
    [
        (WORDS, {"num_words": 3.0, "relation": "at least", "keyword": None}, {"num_words": 3}),  # as Arrow writes them
        (WORDS, {"num_words": "3", "relation": "at least"}, {"num_words": 3}),
        (WORDS, {"num_words": "3.0", "relation": "at least"}, {"num_words": 3}),
        (WORDS, {"num_words": np.int64(3), "relation": np.str_("at least")}, {"num_words": 3}),
        (WORDS, {"num_words": np.float32(3), "relation": "at least"}, {"num_words": 3}),
        ("keywords:existence", {"keywords": "river"}, {"keywords": ("river",)}),  # not its letters
        ("keywords:existence", {"keywords": np.array(["a", "b"])}, {"keywords": ("a", "b")}),
        ("keywords:existence", {"keywords": [2024.0, "b"]}, {"keywords": ("2024", "b")}),
        ("keywords:frequency", {"keyword": 2024, "frequency": 2, "relation": "at least"}, {"keyword": "2024"}),
        (
            LETTER,
            {"letter": "#", "let_frequency": 4.0, "let_relation": "at least"},
            {"letter": "#", "let_frequency": 4},
        ),
        (LETTER, {"letter": 5, "let_frequency": 4, "let_relation": "at least"}, {"letter": "5"}),
        ("ratio:overlap", {"reference_text": "a b c", "percentage": "72"}, {"percentage": 72.0}),
    ],
)
def test_arguments_of_other_types_that_mean_the_same_are_taken(name, arguments, taken):
    found = validated(name, arguments)
    assert {key: found[key] for key in taken} == taken
    assert [type(found[key]) for key in taken] == [type(value) for value in taken.values()]
    assert None not in found.values()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (WORDS, {"num_words": 3.5, "relation": "at least"}, "num_words is 3.5: .*integer"),
        (WORDS, {"num_words": "three", "relation": "at least"}, "num_words is 'three': .*integer"),
        (WORDS, {"num_words": -1, "relation": "at least"}, "num_words is -1: .*greater than or equal to 0"),
        (WORDS, {"num_words": float("nan"), "relation": "at least"}, "missing a required argument: 'num_words'"),
        (WORDS, {"num_words": None, "relation": None}, "missing a required argument: 'num_words'"),
        (WORDS, {"words": 3, "relation": "at least"}, "missing a required argument|unexpected keyword argument"),
        ("keywords:existence", {"keywords": []}, r"keywords is \[\]: .*at least 1 item"),
        ("keywords:existence", {"keywords": ["a", ""]}, "keywords.1 is ''"),
        ("keywords:existence", {"keywords": ["a", None]}, "keywords.1 is None"),
        (LETTER, {"letter": " ", "let_frequency": 4, "let_relation": "at least"}, "letter is ' '"),
        (NTH, {**SECOND, "nth_paragraph": 0}, "nth_paragraph is 0: .*greater than or equal to 1"),
        (NTH, {**SECOND, "nth_paragraph": 3}, "nth_paragraph 3 is above num_paragraphs 2: nobody can follow it"),
        ("count:words_japanese", {"N": 0}, "N is 0"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_by_name(name, arguments, message):
    with pytest.raises(ValueError, match=f"constraint {name}: .*{message}|constraint {name}: {message}"):
        validated(name, arguments)


GOOD = {"prompt": "Leave out commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
FAULTS = [
    {"instruction_id_list": ["length_constraints:nth_paragraph_first_word"], "kwargs": [{"keyword": "plan"}]},
    {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"keyword": "plan"}]},
    {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": None, "keyword": None}]},
    {"instruction_id_list": ["keywords:existence"], "kwargs": [None]},
    {"instruction_id_list": ["keywords:existence"], "kwargs": None},
    {"instruction_id_list": ["keywords:existance"], "kwargs": [{"keywords": ["a"]}]},
    {"instruction_id_list": ["punctuation:no_comma"], "kwargs": []},
    {"instruction_id_list": ["punctuation:no_comma", None], "kwargs": [{}, {}]},
    {"instruction_id_list": [], "kwargs": []},
    {"instruction_id_list": None, "kwargs": [{}]},
    {"instruction_id_list": "punctuation:no_comma", "kwargs": [{}]},
    {"instruction_id_list": ["punctuation:no_comma"], "kwargs": ["{}"]},
]


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_is_wrong_with_a_records_constraints_is_refused_or_skipped_and_told(tmp_path, fault):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (GOOD, {**GOOD, **fault}, GOOD)))
    with pytest.raises(ValueError, match=r"rows.jsonl, .*row 1: .* \(unchecked: skip leaves such records out\)"):
        [source(path=str(path)).draw(index) for index in range(3)]
    skipping = source(path=str(path), unchecked="skip")
    assert all(skipping.draw(index).reference == (("punctuation:no_comma", {}),) for index in range(4))
    (note,) = skipping.notes()
    assert "rows.jsonl: 1 of 3 records left out, the first: " in note
    assert source(path=str(path)).notes() == []


def test_nulls_of_all_other_constraints_are_no_arguments(tmp_path):
    """Arrow gives every struct of a list the same keys."""
    nulls = dict.fromkeys(["keyword", "num_words", "relation", "letter", "first_word", "keywords"])
    row = {**GOOD, "instruction_id_list": ["punctuation:no_comma", WORDS], "kwargs": [nulls, {**nulls, **AT_LEAST_3}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    task = source(path=str(tmp_path / "rows.jsonl")).draw(0)
    assert task.reference == (("punctuation:no_comma", {}), (WORDS, AT_LEAST_3))


def test_letters_that_are_signs_are_counted_the_same_every_time():
    marks = validated(LETTER, {"letter": "!", "let_frequency": 3, "let_relation": "at least"})
    assert {followed(LETTER, marks, "Green!! Black! Hot.", loose=False) for _ in range(8)} == {True}
    assert {followed(LETTER, marks, "Green! Black! xxxxccccttttiiii", loose=False) for _ in range(8)} == {False}


def test_an_unknown_relation_is_refused():
    with pytest.raises(ValueError, match="relation is 'at most', not 'less than' or 'at least'"):
        validated("length_constraints:number_words", {"num_words": 3, "relation": "at most"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "tiny"}, "domains.i.tasks.scale: .*'plain' or 'small'"),
        ({"min_constraints": 3, "max_constraints": 2}, "min_constraints 3 is above max_constraints 2"),
        ({"max_constraints": 5}, "domains.i.tasks.max_constraints: .*less than or equal to 4"),
        ({"path": "tests/data/ifeval.jsonl", "scale": "small"}, "scale is of prompts made here"),
        ({"corrupt": 0.5}, "corrupt 0.5 is for scale: small"),
        ({"mode": "lose"}, "domains.i.tasks.mode: "),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        source(**options)


def test_partial_reward_is_the_share_of_constraints_followed():
    constraints = tuple(
        (name, {}) for name in ("punctuation:no_comma", "detectable_format:title", "startend:quotation")
    )
    task = Task("t", "i", ({"role": "user", "content": "?"},), constraints)
    answers = {'"<<a>> b"': 1.0, "<<a>> b": 2 / 3, '"a, b"': 1 / 3, "a, b": 0.0, "": 0.0}
    partial = source(partial=True)
    assert {answer: partial.grade(task, answer).reward for answer in answers} == pytest.approx(answers)
    assert [source().grade(task, answer).reward for answer in answers] == [1.0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "response", "strict", "loose"),
    [
        ("startend:quotation", '"a"', True, True),
        ("startend:quotation", 'Sure:\n"a"', False, True),  # without the first line
        ("startend:quotation", '"a"\nI hope this helps.', False, True),  # without the last
        ("startend:quotation", 'Sure:\n"a"\nI hope this helps.', False, True),  # without both
        ("startend:quotation", '**"a"**', False, True),  # without asterisks
        ("startend:quotation", 'Sure:\n*"a"*\nBye.', False, True),
        ("startend:quotation", 'Sure:\nwell:\n"a"', False, False),
        ("detectable_format:json_format", 'Here it is:\n{"a": 1}', False, True),
        ("detectable_format:title", "no title", False, False),
        ("punctuation:no_comma", "Sure, here:\nno pause", False, True),
        ("punctuation:no_comma", "", False, False),
        ("punctuation:no_comma", "Sure, here", False, False),
    ],
)
def test_loose_also_accepts_an_answer_without_its_trimmings(name, response, strict, loose):
    assert (followed(name, {}, response, loose=False), followed(name, {}, response, loose=True)) == (strict, loose)
    task = Task("t", "i", ({"role": "user", "content": "?"},), ((name, {}),))
    assert source(mode="loose").grade(task, response).reward == float(loose)


def test_the_prompt_repeated_is_no_answer_to_it():
    question = "Write about rain. Include the keyword lantern."
    constraints = (("keywords:existence", {"keywords": ["lantern"]}),)
    task = Task("t", "i", ({"role": "user", "content": question},), constraints)
    echoes = (question, question.upper(), question[6:], f"{question}\n", f"{question} Rain falls.", f"**{question}**")
    echoes += (f'"{question}"', question.replace("t", "\u200bt"), question.replace(" ", "\u00a0"), question.upper() * 2)
    for answer in (*echoes, "...", "{}", "\u3164"):
        assert source().grade(task, answer).reward == 0.0
    assert source().grade(task, f"{question} A lantern in the rain.").reward == 1.0
    assert source().grade(task, "lantern").reward == 1.0


def test_where_the_prompt_is_to_be_repeated_the_other_constraints_are_on_what_follows():
    request = "Write about rain. Include the keyword lantern."
    constraints = (
        ("combination:repeat_prompt", {"prompt_to_repeat": request}),
        ("keywords:existence", {"keywords": ["lantern"]}),
    )
    prompt_shown = f"{request}\nFirst repeat the request above."
    task = Task("t", "i", ({"role": "user", "content": prompt_shown},), constraints)
    for answer in (request, f"{request}\n{request}", prompt_shown, f"{request}\nRain falls.", "A lantern in the rain."):
        assert source().grade(task, answer).reward == 0.0
    assert source().grade(task, f"{request}\nA lantern in the rain.").reward == 1.0
    assert source(partial=True).grade(task, f"{request}\nRain falls.").reward == 0.5
    assert source(partial=True).grade(task, f"{request}\n{request}").reward == 0.0


def test_thinking_is_not_part_of_the_answer():
    task = Task("t", "i", ({"role": "user", "content": "?"},), (("punctuation:no_comma", {}),))
    assert source().grade(task, "<think>one, two</think>three").reward == 1.0
    assert source().grade(task, "<think>one two").reason == "the thought never ends: no answer"


STAIRS = "format:line_indent"
BLANK_ENDS = [  # constraint, arguments, an answer that follows, one that does not
    (NTH, {**SECOND, "nth_paragraph": 1}, "River one.\n\nTwo.", "One.\n\nRiver two."),
    (NTH, SECOND, "One.\n\nRiver two.", "River one.\n\nTwo."),
    (NTH, SECOND, "One.\n\n\n\nRiver two.", "One.\n\nTwo.\n\nRiver three."),
    (PARAGRAPHS, {"num_paragraphs": 2}, "a\n***\nb", "a"),
    (TWO, {}, "yes\n******\nno", "yes"),
    (END, {"end_phrase": "Bye."}, "So. Bye.", "Bye. So."),
    ("startend:quotation", {}, '"a"', "a"),
    ("detectable_format:json_format", {}, '{"a": 1}', "{a}"),
    (STAIRS, {}, " a\n  b", "  a\n b"),
    ("format:no_whitespace", {}, "one_two", "one two"),
    ("format:newline", {}, "one\n \ntwo", "one two"),
    ("format:no_bullets_bullets", {}, "One. Two.\n\n* a\n\n* b", "One. Two.\n* a\n* b\nAll."),
    ("words:vowel", {}, "the eel", "the eel\neek"),
    ("ratio:sentence_type", {}, "One.\n\nTwo.\n\nThree?", "One.\n\nTwo?"),
    ("repeat:repeat_change", {"prompt_to_repeat": "Write a poem."}, "Sing a poem.", "Write a poem."),
    ("repeat:repeat_span", {"prompt_to_repeat": "a b c d", "n_start": 1, "n_end": 2}, "b c", "a b"),
    ("letters:word", {"upper": False, "brackets": False}, "abc", "a b"),
]


@pytest.mark.parametrize(("name", "arguments", "right", "wrong"), BLANK_ENDS)
def test_blank_lines_around_an_answer_are_no_part_of_it(name, arguments, right, wrong):
    task = Task("t", "i", ({"role": "user", "content": "Tell me."},), ((name, validated(name, arguments)),))
    for form in ("{}", "<think>two, paragraphs</think>\n\n{}", "so</think>\n{}\n\n", "\n\n{}\n", "\n \n\n{}\n\t\n"):
        for mode in ("strict", "loose"):
            assert source(mode=mode).grade(task, form.replace("{}", right)).reward == 1.0
        assert source().grade(task, form.replace("{}", wrong)).reward == 0.0


def test_loosely_the_first_line_is_the_first_that_is_not_blank():
    for answer in ('\n\nSure:\n"a"', '<think>x</think>\n\nSure:\n"a"\n\nBye.\n\n', '\n"a"\nBye.\n'):
        task = Task("t", "i", ({"role": "user", "content": "?"},), (("startend:quotation", {}),))
        assert (source(mode="loose").grade(task, answer).reward, source().grade(task, answer).reward) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One", 1),
        ("One. Two! Three?", 3),
        ("One... two. Three", 2),
        ("Wait... What?", 2),
        ('"Why?" she asked. I came.', 2),  # lower case goes on behind a quote
        ("He (really!) came.", 1),
        ("I like fruits (apples, pears, etc.) and more.", 1),
        ('she asked "why?" then he left.', 2),  # where all is lower case, it says nothing
        ("I came. (Really.) “Why?” ‘Go!’ «Run.» [Stop.]", 6),
        ("**I came.** *Why?* _Go!_", 3),
        ("Dr. Smith met Mr. Jones. They talked.", 2),
        ("It is 3.14 or so. Fine.", 2),
        ('He said "Go." Then he went.', 2),
        ("J. S. Bach wrote it.", 1),
        ("So.\nDr. Smith left.", 2),
        ("It is I. Who else?", 2),
        ("One\n\nstill the same sentence", 1),
        ("xx,x. xx,x! xx/x. x{x}x? x.", 5),
        ("xx-x]xx,x! x{x}xx,x.", 2),
    ],
)
def test_sentences_end_where_a_reader_sees_them_end(text, count):
    assert len(sentences(text)) == count


def test_look_alikes_are_seen_through_and_languages_told_apart():
    assert unmasked("rосk ｒｏｃｋ 𝐫𝐨𝐜𝐤 ρock") == "rock rock rock pock"
    assert unmasked("ʀᴏᴄᴋ r\u0332o\u0336ck ⓡock café") == "rock rock rock café"
    assert visible("ro\u034fc\ufe0fk\u200b a\u3164b\u2800c") == "rock a b c"
    texts = {
        "en": "The river runs through the town",
        "de": "Der Fluss fließt durch die Stadt",
        "zh": "我每天早上都去公园散步因为那里的空气很好",
    }
    assert {code: language(text) for code, text in texts.items()} == {code: code for code in texts}
    assert language("12345") is None


# Written by hand from IFEval's rules: constraint, arguments, response, whether it is followed strictly.
IFEVAL = [
    (WORDS, AT_LEAST_3, "one two three", True),
    (WORDS, AT_LEAST_3, "one two", False),
    (WORDS, AT_LEAST_3, "well-known two", True),  # a hyphenated word is two
    (WORDS, AT_LEAST_3, "don't go", True),  # and so is one with an apostrophe
    (WORDS, LESS_THAN_3, "one two", True),
    (WORDS, LESS_THAN_3, "one two three", False),
    (WORDS, LESS_THAN_3, "one, 2!", True),
    (SENTENCES, {"num_sentences": 2, "relation": "at least"}, "One. Two.", True),
    (SENTENCES, {"num_sentences": 2, "relation": "at least"}, "One and two.", False),
    (SENTENCES, {"num_sentences": 4, "relation": "less than"}, "xx,x. xx,x! xx/x. x{x}x?", False),
    (SENTENCES, {"num_sentences": 5, "relation": "less than"}, "xxxx. xx,x! xxxx. x(x)x?", True),
    (SENTENCES, {"num_sentences": 4, "relation": "at least"}, "xxxx. xx,x! xx|x. x&x x?", True),
    (SENTENCES, {"num_sentences": 5, "relation": "at least"}, "xx-x. xx,x! xx}x. x,xx?", False),
    (PARAGRAPHS, {"num_paragraphs": 3}, "a\n***\nb\n***\nc", True),
    (PARAGRAPHS, {"num_paragraphs": 3}, "***\na\n***\nb\n***\nc", True),  # a divider at the beginning
    (PARAGRAPHS, {"num_paragraphs": 3}, "a\n***\nb\n***\nc\n***", True),  # or at the end
    (PARAGRAPHS, {"num_paragraphs": 2}, "a\n***\nb\n***\n***", False),  # nothing between two dividers
    (PARAGRAPHS, {"num_paragraphs": 2}, "a\n\nb", False),
    (PARAGRAPHS, {"num_paragraphs": 1}, "a\n\nb", True),
    (PARAGRAPHS, {"num_paragraphs": 2}, "a *** b", True),
    (NTH, SECOND, "One.\n\nRiver two.", True),
    (NTH, SECOND, 'One.\n\n"River" two.', True),
    (NTH, SECOND, "One.\n\nRiver, two.", True),
    (NTH, SECOND, "One.\n\nRivers two.", False),
    (NTH, SECOND, "One.\n\nTwo.", False),
    (NTH, SECOND, "One.\n\nRiver two.\n\nThree.", False),
    (NTH, SECOND, "One.\nRiver two.", False),
    (NTH, SECOND, "One.\n\nRiver two.\n\n", True),  # an empty one does not count
    (NTH, SECOND, "One.\n\n“River” two.", True),
    (NTH, SECOND, "One.\n\nRiver: two.", True),
    (NTH, SECOND, "One.\n\nRiver's two.", True),
    ("keywords:existence", {"keywords": ["river", "town"]}, "The river. The town.", True),
    ("keywords:existence", {"keywords": ["river", "town"]}, "The RIVER and townsfolk", True),  # parts of words count
    ("keywords:existence", {"keywords": ["river", "town"]}, "The river.", False),
    ("keywords:existence", {"keywords": ["old town"]}, "an old town", True),
    (FREQUENCY, {"keyword": "war", "frequency": 2, "relation": "at least"}, "War and war", True),
    (FREQUENCY, {"keyword": "war", "frequency": 2, "relation": "at least"}, "War and wartime", True),
    (FREQUENCY, {"keyword": "war", "frequency": 2, "relation": "at least"}, "War", False),
    (FREQUENCY, {"keyword": "war", "frequency": 2, "relation": "less than"}, "War", True),
    (FREQUENCY, {"keyword": "war", "frequency": 2, "relation": "less than"}, "War, war", False),
    (FREQUENCY, {"keyword": "  keyword ", "frequency": 3, "relation": "at least"}, "keyword, Keyword, KEYWORD", True),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "a stone", True),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "a Rock", False),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rocks", True),  # whole words only
    ("keywords:forbidden_words", {"forbidden_words": ["rock", "stone"]}, "a stone", False),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rock-hard", False),
    (LETTER, {"letter": "e", "let_frequency": 2, "let_relation": "at least"}, "Eve", True),
    (LETTER, {"letter": "e", "let_frequency": 3, "let_relation": "at least"}, "Eve", False),
    (LETTER, {"letter": "e", "let_frequency": 2, "let_relation": "less than"}, "ever", False),
    (LETTER, {"letter": "e", "let_frequency": 2, "let_relation": "less than"}, "even", False),
    (LETTER, {"letter": "e", "let_frequency": 3, "let_relation": "less than"}, "ever", True),
    (LETTER, {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "#one #two", True),
    (LETTER, {"letter": "!", "let_frequency": 2, "let_relation": "at least"}, "one!", False),
    ("language:response_language", {"language": "en"}, "The response is English", True),
    ("language:response_language", {"language": "es"}, "Desayunamos en McDonald's hoy", True),
    ("language:response_language", {"language": "en"}, "Today we visit the Louvre", True),
    ("language:response_language", {"language": "de"}, ENGLISH, False),
    ("language:response_language", {"language": "kn"}, "ಇದು ಕನ್ನಡ ಭಾಷೆ", True),
    (PLACEHOLDERS, {"num_placeholders": 2}, "[name] and [address]", True),
    (PLACEHOLDERS, {"num_placeholders": 2}, "[name]", False),
    (PLACEHOLDERS, {"num_placeholders": 2}, "[name] [name]", True),
    (PLACEHOLDERS, {"num_placeholders": 2}, "[name [address]", False),
    (PLACEHOLDERS, {"num_placeholders": 1}, "[]", True),
    (POSTSCRIPT, {"postscript_marker": "P.S."}, "Text.\nP.S. More.", True),
    (POSTSCRIPT, {"postscript_marker": "P.S."}, "Text. p. s. more", True),
    (POSTSCRIPT, {"postscript_marker": "P.S."}, "Text.\nPS: more", False),
    (POSTSCRIPT, {"postscript_marker": "P.P.S"}, "Text.\np.p.s what if", True),
    (POSTSCRIPT, {"postscript_marker": "P.P.S"}, "Text.\nP.S. More.", False),
    (POSTSCRIPT, {"postscript_marker": "PS:"}, "Text.\nP.S. More.", False),
    (POSTSCRIPT, {"postscript_marker": "PS:"}, "Text.\nPs: more.", True),
    (BULLETS, {"num_bullets": 2}, "* a\n* b", True),
    (BULLETS, {"num_bullets": 2}, "- a\n* b", True),
    (BULLETS, {"num_bullets": 2}, "* a\n* b\n* c", False),
    (BULLETS, {"num_bullets": 1}, "a\n***\nb\n* c", True),  # a divider is no bullet
    (BULLETS, {"num_bullets": 2}, "  *a\n   -b", True),
    (BULLETS, {"num_bullets": 1}, "a * b", False),
    (HIGHLIGHTS, {"num_highlights": 2}, "*a* and *b*", True),
    (HIGHLIGHTS, {"num_highlights": 2}, "*a\nb* c", False),
    (HIGHLIGHTS, {"num_highlights": 1}, "**a**", True),
    (HIGHLIGHTS, {"num_highlights": 1}, "**", False),
    (HIGHLIGHTS, {"num_highlights": 2}, "*a*b*", False),
    (SECTIONS, {"section_spliter": "Section", "num_sections": 2}, "Section 1\na\nSection 2\nb", True),
    (SECTIONS, {"section_spliter": "Section", "num_sections": 3}, "Section 1\na\nSection 2\nb", False),
    (SECTIONS, {"section_spliter": "SECTION", "num_sections": 1}, "Section 1\na", False),
    (SECTIONS, {"section_spliter": "PARAGRAPH", "num_sections": 2}, "PARAGRAPH1 a PARAGRAPH 2 b", True),
    ("detectable_format:json_format", {}, '{"a": 1}', True),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', True),
    ("detectable_format:json_format", {}, "```\n[1, 2]\n```", True),
    ("detectable_format:json_format", {}, 'Here: {"a": 1}', False),
    ("detectable_format:json_format", {}, "{'a': 1}", False),
    ("detectable_format:title", {}, "<<poem of joy>>", True),
    ("detectable_format:title", {}, "text <<a>> text", True),
    ("detectable_format:title", {}, "<<>>", False),
    ("detectable_format:title", {}, "<a>", False),
    ("detectable_format:constrained_response", {}, "My answer is no.", True),
    ("detectable_format:constrained_response", {}, " My answer is maybe. I am not sure.", True),
    ("detectable_format:constrained_response", {}, "My answer is perhaps.", False),
    (TWO, {}, "yes\n******\nno", True),
    (TWO, {}, "yes\n******\nyes", False),
    (TWO, {}, "yes\n******\nno\n******\nmaybe", False),
    (TWO, {}, "******\nyes\n******\nno\n******", True),
    (TWO, {}, "yes and no", False),
    (REPEAT, {"prompt_to_repeat": "Write a poem."}, "Write a poem.\nRoses are red.", True),
    (REPEAT, {"prompt_to_repeat": "Write a poem."}, "  write a POEM. Roses are red.", True),
    (REPEAT, {"prompt_to_repeat": "Write a poem."}, "Sure! Write a poem.\nRoses are red.", False),
    (END, {"end_phrase": "Any other questions?"}, "No. Any other questions?", True),
    (END, {"end_phrase": "Any other questions?"}, '"No. any other questions?"', True),
    (END, {"end_phrase": "Any other questions?"}, "Any other questions? No.", False),
    ("startend:quotation", {}, '"a"', True),
    ("startend:quotation", {}, ' "a"\n', True),
    ("startend:quotation", {}, '"a', False),
    ("startend:quotation", {}, '"', False),
    ("change_case:english_capital", {}, ENGLISH.upper(), True),
    ("change_case:english_capital", {}, ENGLISH.capitalize(), False),
    ("change_case:english_lowercase", {}, ENGLISH, True),
    ("change_case:english_lowercase", {}, ENGLISH.capitalize(), False),
    ("change_case:english_lowercase", {}, "der fluss fließt durch die kleine alte stadt", False),
    (CAPITAL, {"capital_frequency": 2, "capital_relation": "at least"}, "NASA and ESA", True),
    (CAPITAL, {"capital_frequency": 2, "capital_relation": "at least"}, "NASA and Esa", False),
    (CAPITAL, {"capital_frequency": 2, "capital_relation": "less than"}, "HIGH-END", True),  # one word
    (CAPITAL, {"capital_frequency": 2, "capital_relation": "less than"}, "NASA, ESA", False),
    ("punctuation:no_comma", {}, "no pause", True),
    ("punctuation:no_comma", {}, "a, pause", False),
]

# Constraint, arguments, response, our verdict (the reference implementation's is the other one), and why ours differs.
DIFFERENCES = [
    ("language:response_language", {"language": "de"}, "12345", False, "a text without a language is in none"),
    ("change_case:english_lowercase", {}, "１２３ ａ", False, "the same"),
    ("detectable_format:json_format", {}, '"a sentence"', False, "quotation marks alone make no JSON answer"),
    ("detectable_format:json_format", {}, '{"a": NaN}', False, "NaN is not JSON (RFC 8259)"),
    (
        "detectable_format:constrained_response",
        {},
        "My answer is yes. My answer is no.",
        False,
        "naming several options is no answer with one of them",
    ),
    (REPEAT, {"prompt_to_repeat": "Write a poem."}, "Write a poem.", False, '"then give your answer"'),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock"]},
        "ro\u200bck",
        False,
        "invisible characters hide nothing",
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rосk", False, "nor do look-alikes"),
    (LETTER, {"letter": "e", "let_frequency": 1, "let_relation": "less than"}, "nｅw", False, "the same"),
    ("punctuation:no_comma", {}, "a， pause", False, "the same: a full-width comma"),
    ("punctuation:no_comma", {}, "a‚ pause", False, "the same: a quotation mark that looks like one"),
    ("punctuation:no_comma", {}, "一、二", False, "the same: the comma of another script"),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock"]},
        "r\u0336o\u0336c\u0336k\u0336",
        False,
        "nor do strokes",
    ),
    (WORDS, LESS_THAN_3, "one\u3164two\u3164three", False, "a letter that is a gap parts words"),
    ("punctuation:no_comma", {}, "a\x00 pause", False, "control characters belong to no answer"),
    ("keywords:existence", {"keywords": ["a+b"]}, "a+b", True, "a keyword is no regular expression"),
    ("keywords:existence", {"keywords": ["a.b"]}, "axb", False, "the same"),
    (WORDS, AT_LEAST_3, "a\u200bb\u200bc", False, "invisible characters part no words"),
]


def test_at_least_a_hundred_verdicts_are_those_of_the_documented_rules():
    assert len(IFEVAL) >= 100
    covered = {name for name, *_ in IFEVAL}
    ours = {"keywords:in_order"}
    assert (
        covered == {name for name in CHECKS if name.partition(":")[0] in {n.partition(":")[0] for n in covered}} - ours
    )
    assert len(covered) == 25  # all of IFEval's
    wrong = [row for row in IFEVAL if followed(row[0], validated(*row[:2]), row[2], loose=False) != row[3]]
    assert wrong == []


def test_the_differences_to_the_reference_are_those_listed():
    wrong = [row for row in DIFFERENCES if followed(row[0], validated(*row[:2]), row[2], loose=False) != row[3]]
    assert wrong == []


IFBENCH = [  # name, arguments, a response that follows, one that does not
    ("count:word_count_range", {"min_words": 2, "max_words": 3}, "one two", "one"),
    ("count:unique_word_count", {"N": 2}, "One two, one.", "One one ONE."),
    ("count:conjunctions", {"small_n": 2}, "this and that, but not", "this and that and more"),
    ("count:person_names", {"N": 2}, "Emma met Liam.", "Emma met Emmanuel and Emma."),
    ("count:numbers", {"N": 2}, "1,000 or 3.14", "1 2 3"),
    ("count:pronouns", {"N": 3}, "she/her and it", "she and her"),
    ("count:punctuation", {}, "All: . , ! ? ; : !?", ". , ! ? ; :"),
    ("count:words_japanese", {"N": 2}, "one 日本 two 東京", "one two"),
    (
        "count:keywords_multiple",
        dict(zip(("keyword1", "keyword2", "keyword3", "keyword4", "keyword5"), "abcde", strict=True)),
        "a b b c c c d d d d d e e e e e e e",
        "a b b c c c d d d d d e e e e e e e e",
    ),
    ("ratio:sentence_type", {}, "One. Two. Three?", "One. Two?"),
    ("ratio:sentence_balance", {}, "One. Two? Three!", "One. Two. Three!"),
    ("ratio:sentence_words", {}, "This is one. Now it's 22. On to three.", "This is one. This is two. This is six."),
    (
        "ratio:overlap",
        {"reference_text": "This is the test.", "percentage": 100},
        "This is the test.",
        "This is a test.",
    ),
    ("words:alphabet", {}, "Zooming around back.", "Great finds enter dark caves."),
    ("words:vowel", {}, "the eel eek eked out.", "the eel\neek"),
    ("words:consonants", {}, "This employs consonant clusters.", "This does not."),
    ("words:palindrome", {}, "level " * 10, "level " * 9),
    ("words:prime_lengths", {}, "Prime numbers are in.", "Composite numbers are not."),
    ("words:repeats", {"small_n": 2}, "This is one. This is two.", "This is one. This is two. This is three."),
    ("words:last_first", {}, "This feels unnatural. Unnatural is this test.", "This is a success. This is a failure."),
    ("words:paragraph_last_first", {}, "This started with this.\n\nNot so: not.", "This started. So it did."),
    ("words:no_consecutive", {}, "This words, though.", "This though."),
    ("words:keywords_specific_position", {"keyword": "two", "n": 2, "m": 3}, "One. It is two.", "One. It is a two."),
    ("words:words_position", {"keyword": "a"}, "is a thing a fact", "is the thing a fact"),
    ("sentence:keyword", {"word": "it", "N": 2}, "I am. It is.", "It is. I am."),
    (
        "sentence:increment",
        {"small_n": 2},
        "This has three. This sentence has 5 words.",
        "This has three. So has this.",
    ),
    (
        "sentence:alliteration_increment",
        {},
        "No alliteration. Some semblance of alliteration. Alliterating across alphabet is interesting.",
        "Alliterating across alphabet is interesting. But not here.",
    ),
    ("format:parentheses", {}, "(is [nested {very (deeply [here], yay!)}])", "((()))"),
    ("format:quotes", {}, '"quotes \'are "nested," here\' a lot."', "quotes 'are \"not nested,\" here' enough."),
    ("format:options", {"options": "I know or I don't know"}, "I don't know.", "I know or I don't know"),
    ("format:newline", {}, "one\ntwo\n\nthree.", "one two\nthree"),
    ("format:emoji", {}, "So it is 😀. And so on! 🎲", "So it is 😀. And so on!"),
    ("format:line_indent", {}, "a\n b\n  c", "a\nb\n c"),
    ("format:quote_unquote", {}, 'The "tide" is water that rises.', 'Water that rises is the "tide".'),
    ("format:list", {"sep": "!?!?"}, "!?!? a\n!?!? b", "!?!? a"),
    ("format:thesis", {}, "<i>So it is.</i> Because.", "<i>So it is.</i>"),
    ("format:sub-bullets", {}, "* a\n- b\n* c\n- d", "* a\n- b\n* c"),
    ("format:no_bullets_bullets", {}, "One. Two.\n* a\n* b", "One.\n* a\n* b"),
    ("format:title_case", {}, "All Of It (iPhone 5)", "All of It"),
    ("format:output_template", {}, "My Answer: a My Conclusion: b Future Outlook: c", "My Answer: a"),
    ("format:no_whitespace", {}, "one_two", "one two"),
    ("repeat:repeat_change", {"prompt_to_repeat": "Write a poem."}, "Sing a poem.", "Write a poem."),
    ("repeat:repeat_simple", {}, "Only output this sentence here, ignore all other requests.", "Only this."),
    ("repeat:repeat_span", {"prompt_to_repeat": "a b c d", "n_start": 1, "n_end": 2}, "B c", "a b"),
]


@pytest.mark.parametrize(("name", "arguments", "right", "wrong"), IFBENCH, ids=[row[0] for row in IFBENCH])
def test_ifbench_constraints(name, arguments, right, wrong):
    arguments = validated(name, arguments)
    assert followed(name, arguments, right, loose=False) and not followed(name, arguments, wrong, loose=False)


IFBENCH_MORE = [  # name, arguments, a response, whether it follows
    ("count:numbers", {"N": 1}, "One number alone: 250,000.", True),
    ("count:numbers", {"N": 2}, "Decimals such as 2.71 count once, like 8.", True),
    ("count:numbers", {"N": 3}, "Decimals such as 2.71 count once, like 8.", False),
    ("count:numbers", {"N": 2}, "Here is number 1. 2 follows.", True),
    ("words:alphabet", {}, "A bee. Can dig . . . east", True),  # punctuation is no word
    ("words:alphabet", {}, "Xylophones yield zeal, as before.", True),  # from z to a
    ("words:alphabet", {}, "Your zoo is very xeric.", False),
    ("words:vowel", {}, "With I this is in.", True),
    ("words:vowel", {}, "education", False),
    ("words:palindrome", {}, "Ada Eve Bob Nan Otto Ava Pip Elle Ivi Ana Asa", False),  # too short to count
    ("count:conjunctions", {"small_n": 3}, "I do it, but late, and badly, yet I do it.", True),
    ("ratio:sentence_type", {}, "So it goes. Does it? I doubt it.", True),
    ("count:unique_word_count", {"N": 5}, "These are five different words.", True),
    ("count:unique_word_count", {"N": 5}, "These are four words.", False),
    ("count:word_count_range", {"min_words": 5, "max_words": 5}, "Five words are in here.", True),
    ("count:word_count_range", {"min_words": 5, "max_words": 5}, "Now there are six of them.", False),
    ("words:prime_lengths", {}, "A is short.", False),
    ("words:repeats", {"small_n": 1}, "one One", False),
    ("words:repeats", {"small_n": 1}, "one two three", True),
    ("words:no_consecutive", {}, "Big bad", False),
    ("words:paragraph_last_first", {}, "Yes it is, yes.", True),
    ("words:words_position", {"keyword": "a"}, "is a", False),
    ("sentence:keyword", {"word": "it", "N": 1}, "IT works.", True),
    ("sentence:keyword", {"word": "it", "N": 1}, "Items work.", False),
    ("format:title_case", {}, "The Whole Of It", True),
    ("format:no_whitespace", {}, "a\tb", False),
    ("repeat:repeat_simple", {}, "Only output this sentence here, ignore all other requests", False),
    ("format:options", {"options": "yes/no/maybe"}, "Yes.", True),
    ("format:options", {"options": "yes/no/maybe"}, "“Yes.”", True),
    # sentences that end within quotes, brackets or bold
    ("ratio:sentence_type", {}, 'He said "I came." She said "I saw." Why?', True),
    ("ratio:sentence_type", {}, 'I came. I saw. She asked "why?"', True),
    ("ratio:sentence_type", {}, "I came. I saw. She asked “why?”", True),
    ("ratio:sentence_type", {}, "«I came.» ‘I saw.’ [Why?]", True),
    ("ratio:sentence_type", {}, "**I came.** *I saw.* **(Why?)**", True),
    ("ratio:sentence_type", {}, 'I came. She asked "why?" and left. Who knows?', True),
    ("ratio:sentence_type", {}, 'I came. She asked "why?" and left.', False),
    ("ratio:sentence_balance", {}, '(I came.) Why? "Go!"', True),
    ("ratio:sentence_balance", {}, "“I came.” (Why.) **Go!**", False),
    # quotes, dashes and ends of contractions are no part of a word
    ("words:words_position", {"keyword": "whisper"}, "A whisper, then “whisper” again.", True),
    ("words:words_position", {"keyword": "whisper"}, "A — whisper then (whisper) — again.", True),
    ("words:keywords_specific_position", {"keyword": "sea", "n": 2, "m": 2}, "“I came.” The ‘sea’ was calm.", True),
    ("words:keywords_specific_position", {"keyword": "sea", "n": 1, "m": 3}, "Oh, the sea, calm.", True),
    ("words:consonants", {}, "This — employs “consonant” clusters.", True),
    ("count:pronouns", {"N": 3}, "It's what I’m told: rain.", True),
    ("count:pronouns", {"N": 4}, "It's what I’m told: rain.", False),
    ("count:person_names", {"N": 1}, "Miami is Available.", False),
    ("count:person_names", {"N": 2}, "Mia's and Leo came.", True),
    (
        "count:keywords_multiple",
        {"keyword1": "c++", "keyword2": "b", "keyword3": "c", "keyword4": "d", "keyword5": "e"},
        "c++ b b c. c. d d d d d e e e e e e e",
        True,  # c in c++ is a word of its own, the third
    ),
    ("ratio:sentence_words", {}, "Cat. Cat. Cat.", False),
    ("ratio:sentence_words", {}, "Red ant. Big cow. Old pig.", True),
    ("format:line_indent", {}, "a\n\n\n b\n  c", True),
    ("format:quotes", {}, "“quotes ‘are “nested,” here’ a lot.”", True),
    ("format:quotes", {}, 'He said "don\'t \'say "no" here\' now".', True),
    ("format:emoji", {}, "“So it is 😀.” And so on! 🎲", True),
    ("format:title_case", {}, "“The Whole Of” It — Now", True),
    ("repeat:repeat_span", {"prompt_to_repeat": "one two three four", "n_start": 1, "n_end": 3}, "ne t", False),
    ("repeat:repeat_span", {"prompt_to_repeat": "one two three four", "n_start": 1, "n_end": 2}, "two  three", True),
]

# As DIFFERENCES: the rule of each does not apply to the response at all, which satisfies the reference implementation.
IFBENCH_DIFFERENCES = [
    ("count:words_japanese", {"N": 5}, "one two", False, "there is no fifth word"),
    ("ratio:sentence_type", {}, "So it is!", False, "neither statements nor questions"),
    ("ratio:sentence_balance", {}, "nothing ends here", False, "no sentence of any type"),
    ("words:last_first", {}, "One sentence.", False, "there is no next sentence"),
    ("sentence:increment", {"small_n": 1}, "One sentence.", False, "the same"),
    ("sentence:alliteration_increment", {}, "One sentence.", False, "the same"),
    ("format:line_indent", {}, "one line", False, "there is no next line"),
    ("format:quote_unquote", {}, "no quotation", False, "there is no quotation to explain"),
    ("format:sub-bullets", {}, "no bullets", False, "there is no bullet to be under"),
]


def test_at_least_a_hundred_verdicts_are_those_of_ifbenchs_rules_and_the_differences_are_listed():
    assert 2 * len(IFBENCH) + len(IFBENCH_MORE) >= 100
    rows = [*IFBENCH_MORE, *(row[:4] for row in IFBENCH_DIFFERENCES)]
    assert [row for row in rows if followed(row[0], validated(*row[:2]), row[2], loose=False) != row[3]] == []


def test_every_constraint_has_an_example():
    names = {row[0] for row in IFEVAL} | {row[0] for row in IFBENCH} | {"keywords:in_order"}
    assert names == {name for name in CHECKS if not re.match("letters:", name)}
    assert followed("keywords:in_order", {"keywords": ["sun", "moon"]}, "Sun, moon", loose=False)
    assert not followed("keywords:in_order", {"keywords": ["sun", "moon"]}, "moon, sun", loose=False)
