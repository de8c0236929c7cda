//! The project's documentation: its links lead somewhere, its settings and commands exist, and its
//! manifests are read.
//!
//! What is looked at is every Markdown file of the repository. A command is one where it stands in a block
//! marked `sh` or `console`, or in backticks within a text.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

use lucid::cli::Cli;
use lucid::config::SETTINGS;
use lucid::manifest::Manifest;

const README: &str = include_str!("../../README.md");
const CONFIGURATION: &str = include_str!("../../host/docs/configuration.md");
const MANIFEST: &str = include_str!("../../host/docs/manifest.md");

/// A README is read, and what is longer is a page of its own.
const LONGEST_README: usize = 8 * 1024;
/// Folders with files of others, or of no lasting content.
const PASSED_OVER: [&str; 6] = [
    ".git",
    ".venv",
    "node_modules",
    "storage",
    "target",
    "vendor",
];

/// A Markdown file of the repository.
struct Page {
    path: PathBuf,
    text: String,
}

/// A fenced block.
struct Block {
    /// What stands behind its fence, such as `sh`.
    language: String,
    /// Where it begins in its file.
    line: usize,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn pages() -> Vec<Page> {
    let mut pages = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                if !PASSED_OVER.iter().any(|passed| name == *passed) {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path).unwrap();
                pages.push(Page { path, text });
            }
        }
    }
    assert!(pages.len() >= 15, "there are {} pages", pages.len());
    pages.sort_by(|a, b| a.path.cmp(&b.path));
    pages
}

impl Page {
    /// As people name it.
    fn name(&self) -> String {
        let below = self.path.strip_prefix(root()).unwrap_or(&self.path);
        below.display().to_string()
    }

    /// Its lines outside of fenced blocks; the others are empty, so that numbers stay.
    fn prose(&self) -> String {
        let mut within = false;
        let mut prose = String::new();
        for line in self.text.lines() {
            let fence = line.trim_start().starts_with("```");
            if !within && !fence {
                prose.push_str(line);
            }
            within ^= fence;
            prose.push('\n');
        }
        prose
    }

    fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut within = false;
        for (number, line) in self.text.lines().enumerate() {
            match line.trim_start().strip_prefix("```") {
                Some(language) if !within => {
                    blocks.push(Block {
                        language: language.trim().to_owned(),
                        line: number + 1,
                        text: String::new(),
                    });
                    within = true;
                }
                Some(_) => within = false,
                None if within => {
                    let block = blocks.last_mut().unwrap();
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                None => {}
            }
        }
        blocks
    }

    /// What is written in backticks, in one line each, and the prose around it.
    fn spans(&self) -> (Vec<String>, String) {
        let (mut code, mut around) = (Vec::new(), String::new());
        let prose = self.prose();
        // A backtick that has no other reaches no further than its paragraph.
        for paragraph in prose.split("\n\n") {
            for (number, piece) in paragraph.split('`').enumerate() {
                if number % 2 == 1 {
                    code.push(piece.split_whitespace().collect::<Vec<_>>().join(" "));
                } else {
                    around.push_str(piece);
                }
            }
            around.push_str("\n\n");
        }
        (code, around)
    }

    /// Where its links lead, as they are written.
    fn links(&self) -> Vec<String> {
        let (_, prose) = self.spans();
        let behind = prose.split("](").skip(1);
        let targets = behind.filter_map(|rest| rest.split_once(')'));
        targets.map(|(target, _)| target.to_owned()).collect()
    }

    /// The anchors that its headings have.
    fn anchors(&self) -> BTreeSet<String> {
        let mut anchors = BTreeSet::new();
        for line in self.prose().lines() {
            let text = line.trim_start_matches('#');
            let depth = line.len() - text.len();
            if !(1..=6).contains(&depth) || !text.starts_with(' ') {
                continue;
            }
            let first = anchor(text.trim());
            let again = (1..).map(|number| format!("{first}-{number}"));
            let mut candidates = std::iter::once(first.clone()).chain(again);
            let free = candidates.find(|candidate| !anchors.contains(candidate));
            anchors.extend(free);
        }
        anchors
    }
}

/// The anchor of a heading, as the hosting sites make it.
fn anchor(heading: &str) -> String {
    let kept = |c: char| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c),
        _ => None,
    };
    // Of a link only its text is shown.
    let mut shown = String::new();
    let mut pieces = heading.split("](");
    shown.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        shown.push_str(piece.split_once(')').map_or(piece, |(_, behind)| behind));
    }
    shown.to_lowercase().chars().filter_map(kept).collect()
}

/// What is wrong with a link of a page, if anything.
fn broken(page: &Page, pages: &[Page], link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, wanted) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() {
        page.path.clone()
    } else {
        page.path.parent().unwrap().join(path)
    };
    let Ok(target) = target.canonicalize() else {
        return Some("there is no such file".to_owned());
    };
    let root = root().canonicalize().unwrap();
    if !target.starts_with(root) {
        return Some("it leads out of the repository".to_owned());
    }
    if wanted.is_empty() {
        return None;
    }
    let known = pages
        .iter()
        .find(|page| page.path.canonicalize().is_ok_and(|path| path == target));
    match known.map(Page::anchors) {
        Some(anchors) if anchors.contains(wanted) => None,
        Some(anchors) => Some(format!("that page has {anchors:?}")),
        None => Some("only pages have anchors".to_owned()),
    }
}

/// The words of a shell's line, up to a comment.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                word = Some(word.take().unwrap_or_default());
            }
            None if c == '#' && word.is_none() => break,
            None if c.is_whitespace() => words.extend(word.take()),
            None => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// The commands of a block of shell.
fn commands(block: &Block) -> Vec<Vec<String>> {
    let whole = block.text.replace("\\\n", " ");
    let lines = whole.lines().filter_map(|line| match &*block.language {
        "sh" => Some(line),
        "console" => line.strip_prefix("$ "),
        _ => None,
    });
    let commands = lines.map(words).filter(|words| !words.is_empty());
    commands.collect()
}

/// What follows the program's name, where that is Lucid.
fn arguments(command: &[String]) -> Option<&[String]> {
    match command {
        [first, rest @ ..] if first == "lucid" => Some(rest),
        [first, second, third, rest @ ..]
            if first == "cargo" && second == "run" && third == "--" =>
        {
            Some(rest)
        }
        _ => None,
    }
}

/// Why the command line does not take these, if it does not.
fn refused(arguments: &[String]) -> Option<String> {
    let all = std::iter::once("lucid").chain(arguments.iter().map(String::as_str));
    let error = Cli::try_parse_from(all).err()?;
    let asked = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion];
    (!asked.contains(&error.kind())).then(|| error.to_string())
}

/// What of a command that a text mentions does not exist, if anything. It may leave out what it needs.
fn unknown(mention: &str) -> Option<String> {
    let mut command = Cli::command();
    command.build();
    for word in mention.split_whitespace().skip(1) {
        if let Some(flag) = word.strip_prefix("--") {
            let flag = flag.split('=').next().unwrap_or_default();
            if !command
                .get_arguments()
                .any(|known| known.get_long() == Some(flag))
            {
                return Some(format!("`{}` has no --{flag}", command.get_name()));
            }
        } else if let Some(deeper) = command.find_subcommand(word).cloned() {
            command = deeper;
        } else if command.has_subcommands() {
            return Some(format!("`{}` has no command {word}", command.get_name()));
        }
    }
    None
}

/// What is wrong with a command that is not Lucid's own, if anything: a script or a benchmark that is not
/// there.
fn missing(command: &[String]) -> Option<String> {
    let path = match command {
        [shell, script, ..] if shell == "bash" => script.clone(),
        [cargo, bench, flag, name, ..]
            if cargo == "cargo" && bench == "bench" && flag == "--bench" =>
        {
            format!("host/benches/{name}.rs")
        }
        [program, ..] if program.contains('/') && !program.contains(['=', '$']) => program.clone(),
        _ => return None,
    };
    (!root().join(&path).exists()).then(|| format!("there is no {path}"))
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let mut wrong = String::new();
    let mut count = 0;
    for page in &pages {
        for link in page.links() {
            count += 1;
            if let Some(why) = broken(page, &pages, &link) {
                let _ = writeln!(wrong, "{}: {link}: {why}", page.name());
            }
        }
    }
    assert_eq!(wrong, "", "links that lead nowhere");
    assert!(count >= 50, "only {count} links were found");
}

#[test]
fn a_broken_link_is_noticed() {
    let page = Page {
        path: root().join("README.md"),
        text: "# One `two`, three\n\n# One two three\n[a](#one-two-three-1) [b](nowhere.md)\n[`c`](host/docs) [d](#nothing) [e](host/build.rs#x)\n```\n[f](none)\n```\n`[g](none)`\n".to_owned(),
    };
    let links = page.links();
    assert_eq!(
        links,
        [
            "#one-two-three-1",
            "nowhere.md",
            "host/docs",
            "#nothing",
            "host/build.rs#x"
        ]
    );
    let pages = [page];
    let wrong = links
        .iter()
        .map(|link| broken(&pages[0], &pages, link).is_some());
    assert_eq!(
        wrong.collect::<Vec<_>>(),
        [false, true, false, true, true],
        "{:?}",
        pages[0].anchors()
    );
}

#[test]
fn every_setting_is_described_and_everything_described_is_a_setting() {
    let (settings, _) = CONFIGURATION
        .split_once("\n## Other environment variables\n")
        .unwrap();
    let rows = settings.lines().filter(|line| line.starts_with("| `"));
    let described: Vec<&str> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    let once: BTreeSet<&str> = described.iter().copied().collect();
    assert_eq!(once.len(), described.len(), "one is described twice");
    let known: BTreeSet<&str> = SETTINGS.iter().copied().collect();
    let missing: Vec<_> = known.difference(&once).collect();
    let invented: Vec<_> = once.difference(&known).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "configuration.md does not describe {missing:?}, and describes {invented:?}, which nobody reads"
    );
}

#[test]
fn the_readme_is_short() {
    let length = README.len();
    assert!(
        length <= LONGEST_README,
        "README.md has {length} bytes; move what is more to host/docs"
    );
}

#[test]
fn every_command_is_one_that_exists() {
    let mut wrong = String::new();
    let (mut whole, mut mentioned) = (0, 0);
    for page in pages() {
        let name = page.name();
        for block in page.blocks() {
            for command in commands(&block) {
                let why = match arguments(&command) {
                    Some(arguments) => {
                        whole += 1;
                        refused(arguments)
                    }
                    None => missing(&command),
                };
                if let Some(why) = why {
                    let line = block.line;
                    let _ = writeln!(wrong, "{name}:{line}: {}: {why}", command.join(" "));
                }
            }
        }
        for mention in page.spans().0 {
            if mention.starts_with("lucid ") {
                mentioned += 1;
                if let Some(why) = unknown(&mention) {
                    let _ = writeln!(wrong, "{name}: {mention}: {why}");
                }
            }
        }
    }
    assert_eq!(wrong, "", "commands that do not exist");
    assert!(
        whole >= 30 && mentioned >= 30,
        "only {whole} commands and {mentioned} mentions were found"
    );
}

#[test]
fn a_command_that_does_not_exist_is_noticed() {
    let line = words;
    assert_eq!(
        line("lucid run \"Say hello\" --policy 'mo'ck  # a comment"),
        ["lucid", "run", "Say hello", "--policy", "mock"]
    );
    assert_eq!(refused(&line("run \"Say hello\"")), None);
    assert_eq!(refused(&line("plugin new --help")), None);
    assert!(refused(&line("run")).is_some(), "it needs a task");
    assert!(refused(&line("run hello --modle x")).is_some());
    assert_eq!(unknown("lucid run --repo"), None);
    assert_eq!(unknown("lucid plugin check reviewer.wasm"), None);
    assert!(unknown("lucid plugin chekc").is_some());
    assert!(unknown("lucid serve --now").is_some());
    assert!(missing(&line("bash tests/runn")).is_some());
    assert!(missing(&line("cargo bench --bench nothing")).is_some());
}

#[test]
fn every_manifest_on_its_page_is_one_that_is_read() {
    let page = Page {
        path: root().join("host/docs/manifest.md"),
        text: MANIFEST.to_owned(),
    };
    let blocks = page.blocks();
    let manifests = blocks.iter().filter(|block| block.language == "toml");
    let mut count = 0;
    for block in manifests {
        count += 1;
        if let Err(problems) = Manifest::parse(Path::new("lucid.toml"), &block.text) {
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            panic!("manifest.md:{}: {}", block.line, all.join("\n"));
        }
    }
    assert!(count >= 4, "only {count} manifests were found");
}
