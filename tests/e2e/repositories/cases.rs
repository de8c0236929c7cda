//! The ten repositories: what is wrong with each, and how the model goes about it.
//!
//! What always holds: a script makes the mistakes that models make, and nothing in it knows how the
//! agent deals with them.

use serde_json::json;

use super::script::{Step, decline, edit, finish, odd, run, say, test, told, too_long, undo, view};
use lucid_tests::{ModelTurn, call, calls};

/// One repository, and what has to come out.
pub(crate) struct Case {
    /// The folder below `tests/repositories`.
    pub(crate) name: &'static str,
    /// What the model does.
    pub(crate) steps: Vec<Step>,
    /// The files that the branch changes; no others.
    pub(crate) changed: &'static [&'static str],
    /// How many model calls there may be.
    pub(crate) budget: usize,
    /// What the agent tells the model on the way.
    pub(crate) told: &'static [&'static str],
    /// What a commit message of the branch begins with.
    pub(crate) message: &'static str,
    /// What the user answers when they are asked.
    pub(crate) answer: Option<&'static str>,
}

/// For what most have in common.
const COMMON: Case = Case {
    name: "",
    steps: Vec::new(),
    changed: &[],
    budget: 20,
    told: &[],
    message: "Fix what the tests find",
    answer: None,
};

/// A text that occurs twice, then one that is indented wrongly.
pub(crate) fn python_median() -> Case {
    let wrong = "    middle = len(values) / 2\n";
    let right = "    middle = len(values) // 2\n";
    let fixed = "    middle = len(values) // 2\n    if len(values) % 2 == 0:\n        \
                 return (values[middle - 1] + values[middle]) / 2\n";
    let file = "/workspace/stats/center.py";
    Case {
        name: "python-median",
        steps: vec![
            Step::Do(calls([
                (
                    "terminal",
                    json!({"command": "git log --oneline | head -5; ls -R . | head -40"}),
                ),
                ("terminal", json!({"command": "sh test.sh"})),
            ])),
            edit(file, "        raise ValueError(\"no values\")\n", ""),
            edit(file, wrong, fixed),
            edit(file, &right.replace("    ", "\t"), fixed),
            edit(file, right, fixed),
            test(),
            finish("The median of an even count is the mean of the two in the middle."),
        ],
        changed: &["stats/center.py"],
        told: &[
            "occurs 3 times in stats/center.py, at the lines",
            "differs only in spaces",
            "Not committed: stats/center.py",
        ],
        ..COMMON
    }
}

/// The test's words blame a place that is right.
pub(crate) fn python_invoice() -> Case {
    let file = "/workspace/invoice.py";
    Case {
        name: "python-invoice",
        steps: vec![
            test(),
            view(file),
            edit(file, "Decimal(\"0.19\")", "Decimal(\"0.195\")"),
            test(),
            undo(file),
            Step::Do(call(
                "think",
                json!({"thought": "The README says half a cent up; money.py rounds half to even."}),
            )),
            run("cat README.md money.py"),
            edit(
                "/workspace/money.py",
                "import ROUND_HALF_EVEN,",
                "import ROUND_HALF_UP,",
            ),
            edit(
                "/workspace/money.py",
                "rounding=ROUND_HALF_EVEN",
                "rounding=ROUND_HALF_UP",
            ),
            test(),
            Step::Commit("Round half a cent up, as the README says"),
            finish("money.py rounded half to even. The tax rate was right all along."),
        ],
        changed: &["money.py"],
        message: "Round half a cent up",
        told: &["the tax rate in invoice.py is wrong", "was taken back"],
        ..COMMON
    }
}

/// Arguments that are no JSON, and a tool that is not there.
pub(crate) fn shell_backup() -> Case {
    let old = "for file in $(find \"$from\" -name '*.txt' | sort); do\n  cp \"$file\" \"$to/\"\n  \
               count=$((count + 1))\ndone\n";
    let new = "list=$(mktemp)\nfind \"$from\" -name '*.txt' | sort >\"$list\"\n\
               while IFS= read -r file; do\n  cp \"$file\" \"$to/\"\n  count=$((count + 1))\n\
               done <\"$list\"\nrm -f \"$list\"\n";
    Case {
        name: "shell-backup",
        steps: vec![
            odd("terminal", "{\"command\": \"sh test.sh", "tool_calls"),
            Step::Do(call("bash", json!({"command": "sh test.sh"}))),
            test(),
            view("backup.sh"),
            edit("backup.sh", old, new),
            test(),
            finish("File names may hold spaces now."),
        ],
        changed: &["backup.sh"],
        told: &[
            "not one JSON object",
            "There is no tool `bash`. There are: terminal, file_editor",
        ],
        ..COMMON
    }
}

/// Answers with nothing in them, and two bugs of which the first hides the second.
pub(crate) fn c_ring() -> Case {
    Case {
        name: "c-ring",
        steps: vec![
            say(""),
            test(),
            view("/workspace/ring.c"),
            edit(
                "/workspace/ring.c",
                "ring->count >= RING_SIZE - 1",
                "ring->count >= RING_SIZE",
            ),
            test(),
            say("  "),
            edit(
                "/workspace/ring.c",
                "ring->first = ring->first + 1 % RING_SIZE;",
                "ring->first = (ring->first + 1) % RING_SIZE;",
            ),
            test(),
            Step::Commit("Use every place of the ring, and wrap around"),
            say(
                "The ring lost its last place and never wrapped around. Both are fixed; the tests pass.",
            ),
        ],
        changed: &["ring.c"],
        message: "Use every place",
        told: &["Your answer was empty", "it wraps around: got 4, not 0"],
        ..COMMON
    }
}

/// It does not build; an answer is cut off in the middle; and the model forgets to try its work.
pub(crate) fn c_build() -> Case {
    let half =
        "{\"command\":\"create\",\"path\":\"/workspace/words.c\",\"file_text\":\"#include <ct";
    Case {
        name: "c-build",
        steps: vec![
            test(),
            odd("file_editor", half, "length"),
            Step::Do(calls([
                (
                    "file_editor",
                    json!({"command": "str_replace", "path": "words.h", "old_str": "#define WORDS_H\n",
                        "new_str": "#define WORDS_H\n\n#include <stddef.h>\n"}),
                ),
                (
                    "file_editor",
                    json!({"command": "str_replace", "path": "words.c", "old_str": "count_words(char *text)",
                        "new_str": "count_words(const char *text)"}),
                ),
            ])),
            finish("It builds again."),
            test(),
            finish("It builds again, and its tests pass."),
        ],
        changed: &["words.c", "words.h"],
        told: &[
            "Your answer was cut off at the output limit",
            "Verify the change first",
        ],
        ..COMMON
    }
}

/// Two files of instructions contradict each other; a filter declines an answer.
pub(crate) fn perl_csv() -> Case {
    let old = "    my @fields = split /,/, $line, -1;\n    for (@fields) {\n        s/^\"(.*)\"$/$1/;\n        \
               s/\"\"/\"/g;\n    }\n    return @fields;\n";
    let new = "    my @fields;\n    while ($line =~ /\\G(?:\"((?:[^\"]|\"\")*)\"|([^,]*))(,|$)/g) {\n        \
               my ($quoted, $plain, $end) = ($1, $2, $3);\n        \
               $quoted =~ s/\"\"/\"/g if defined $quoted;\n        \
               push @fields, defined $quoted ? $quoted : $plain;\n        last if $end eq '';\n    }\n    \
               return @fields;\n";
    Case {
        name: "perl-csv",
        steps: vec![
            test(),
            decline(),
            view("Csv.pm"),
            edit("Csv.pm", old, new),
            test(),
            Step::See(|seen| {
                // What stands first holds.
                let told = told(seen);
                let first = told.find("begin with `fix:`").unwrap_or(usize::MAX);
                let second = told.find("begin with `bug -`").unwrap_or(usize::MAX);
                let message = if first < second {
                    "fix: read commas within quotes"
                } else {
                    "bug - read commas within quotes"
                };
                super::script::commit(seen, message)
            }),
            finish("Fields in quotes may hold commas."),
        ],
        changed: &["Csv.pm"],
        message: "fix: ",
        told: &["was declined before it was complete", "Write no comments."],
        ..COMMON
    }
}

/// The provider does not take the prompt any more.
pub(crate) fn awk_report() -> Case {
    let old = "\tif (NR == 1 || $2 \"\" > largest) {\n\t\tlargest = $2 \"\"\n\t}\n";
    let new = "\tif (NR == 1 || $2 + 0 > largest) {\n\t\tlargest = $2 + 0\n\t}\n";
    Case {
        name: "awk-report",
        steps: vec![
            run("cat report.awk data.txt expected.txt"),
            test(),
            run("seq 1 5000"),
            too_long(),
            view("report.awk"),
            edit("report.awk", old, new),
            too_long(),
            test(),
            Step::Commit("Compare amounts as numbers"),
            finish("The largest amount was found by comparing texts."),
        ],
        changed: &["report.awk"],
        message: "Compare amounts",
        told: &["These are your own notes", "Write the notes now"],
        ..COMMON
    }
}

/// The bug is in a file that must not be changed.
pub(crate) fn python_forbidden() -> Case {
    Case {
        name: "python-forbidden",
        steps: vec![
            test(),
            run("cat pages.py vendor/slug.py"),
            Step::See(|seen| {
                let forbidden = told(seen).contains("Never change anything below `vendor/`");
                let (path, old, new) = if forbidden {
                    ("pages.py", "slug(title)", "slug(\" \".join(title.split()))")
                } else {
                    (
                        "vendor/slug.py",
                        "text.lower()",
                        "\" \".join(text.lower().split())",
                    )
                };
                call(
                    "file_editor",
                    json!({"command": "str_replace", "path": path, "old_str": old, "new_str": new}),
                )
            }),
            test(),
            finish("Titles are tidied before they become addresses."),
        ],
        changed: &["pages.py"],
        told: &["They are the project's words, not the user's"],
        ..COMMON
    }
}

/// What is right is the user's choice.
pub(crate) fn shell_config() -> Case {
    Case {
        name: "shell-config",
        steps: vec![
            test(),
            run("cat config.sh test.sh README.md"),
            Step::Do(call(
                "ask_user",
                json!({"question": "Which value holds where a name stands twice?",
                    "options": ["the first", "the last"]}),
            )),
            Step::See(|seen| {
                let asked = seen.messages("user").concat();
                let last = asked.contains("The last one holds");
                let (take, wanted) = if last { ("tail", 90) } else { ("head", 80) };
                calls([
                    (
                        "file_editor",
                        json!({"command": "str_replace", "path": "config.sh", "old_str": "\"$1\"\n",
                            "new_str": format!("\"$1\" | {take} -n 1\n")}),
                    ),
                    (
                        "file_editor",
                        json!({"command": "create", "path": "wanted-for-twice.txt",
                            "file_text": format!("{wanted}\n")}),
                    ),
                    ("terminal", json!({"command": "sh test.sh"})),
                ])
            }),
            finish("The last value holds, as you said."),
        ],
        changed: &["config.sh", "wanted-for-twice.txt"],
        told: &["The user answered."],
        answer: Some("The last one holds."),
        ..COMMON
    }
}

/// The model goes round in circles, until it is told.
pub(crate) fn python_roman() -> Case {
    let old = "    (1000, \"M\"), (500, \"D\"), (100, \"C\"), (50, \"L\"), (10, \"X\"), (5, \"V\"), (1, \"I\"),\n";
    let new = "    (1000, \"M\"), (900, \"CM\"), (500, \"D\"), (400, \"CD\"), (100, \"C\"), (90, \"XC\"),\n    \
               (50, \"L\"), (40, \"XL\"), (10, \"X\"), (9, \"IX\"), (5, \"V\"), (4, \"IV\"), (1, \"I\"),\n";
    let mut steps = vec![
        Step::Do(call(
            "task_tracker",
            json!({"tasks": [{"title": "See it fail", "status": "in_progress"}, {"title": "Fix it"}]}),
        )),
        run("sh test.sh | tail -n 1"),
    ];
    // As long as nobody tells it, it looks again.
    for _ in 0..4 {
        steps.push(Step::See(|seen| {
            if told(seen).contains("the result did not change") {
                ModelTurn::Say(String::new())
            } else {
                call(
                    "file_editor",
                    json!({"command": "view", "path": "roman.py"}),
                )
            }
        }));
    }
    steps.extend([
        edit("roman.py", old, new),
        test(),
        Step::Commit("Write four as IV and nine as IX"),
        finish("Numbers such as 4 and 9 are written by subtraction."),
    ]);
    Case {
        name: "python-roman",
        steps,
        changed: &["roman.py"],
        message: "Write four as IV",
        told: &["You have made the same call (`file_editor {\"command\":\"view\""],
        ..COMMON
    }
}
