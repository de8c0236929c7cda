//! Parses what a push wants to change, the command list before its pack as in gitprotocol-pack(5),
//! and builds the reply to git when the list is refused.
//!
//! # Invariants
//! - A list is read completely or refused; a byte that a server might interpret differently makes
//!   it refused.
//! - A push is allowed as a whole or not at all.
//! - Parsing resumes where it stopped, so a list in many pieces costs no more than one in a single
//!   piece.

use super::branch_policy::BranchPolicy;
use super::error::PushError;

/// Maximum size of a list in bytes: some thousand branches.
pub(super) const MAX_COMMANDS: usize = 1 << 20;
/// The longest packet line in bytes, its length field included.
const MAX_LINE: usize = 65_520;
/// The longest packet line if git asked for the short ones.
const SHORT_LINE: usize = 1000;

/// The commands of one push, as far as they were read.
#[derive(Debug, Default)]
pub(super) struct PushCommands {
    /// How many bytes were read.
    at: usize,
    /// The refs to create, change or delete.
    refs: Vec<String>,
    /// Those of them that are not deleted.
    updated: Vec<String>,
    capabilities: PushCapabilities,
}

/// The capabilities that git requested, after the first command.
#[derive(Debug, Default)]
struct PushCapabilities {
    /// Whether to report the result of each ref.
    report: bool,
    /// Maximum size of a side-band packet, if the report goes through one, beside messages for
    /// people.
    side_band: Option<usize>,
    /// Whether push options follow, which a server's own hooks read.
    options: bool,
}

impl PushCommands {
    /// Continues parsing a push of which `bytes` were received so far, and returns whether the list
    /// is complete.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<bool, PushError> {
        while let Some((length, rest)) = bytes
            .get(self.at..)
            .and_then(<[u8]>::split_first_chunk::<4>)
        {
            let size = packet_size(*length).ok_or(PushError::Unreadable)?;
            if size == 0 {
                if self.refs.is_empty() {
                    return Err(PushError::Unreadable);
                }
                return Ok(true);
            }
            // An empty line has size 4. A smaller size is no line, and servers differ in how they
            // interpret it.
            if size <= 4 || size > MAX_LINE {
                return Err(PushError::Unreadable);
            }
            if self.at + size > MAX_COMMANDS {
                return Err(PushError::TooMany);
            }
            let Some(line) = rest.get(..size - 4) else {
                break;
            };
            self.line(line)?;
            self.at += size;
        }
        if bytes.len() >= MAX_COMMANDS {
            return Err(PushError::TooMany);
        }
        Ok(false)
    }

    fn line(&mut self, line: &[u8]) -> Result<(), PushError> {
        let text = std::str::from_utf8(line).map_err(|_| PushError::Unreadable)?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        if text.starts_with("push-cert") {
            return Err(PushError::Signed);
        }
        if let Some(commit) = text.strip_prefix("shallow ") {
            return is_hash(commit).then_some(()).ok_or(PushError::Unreadable);
        }
        let (command, capabilities) = match text.split_once('\0') {
            Some((command, capabilities)) => (command, Some(capabilities)),
            None => (text, None),
        };
        let mut words = command.splitn(3, ' ');
        let (Some(old), Some(new), Some(name)) = (words.next(), words.next(), words.next()) else {
            return Err(PushError::Unreadable);
        };
        let hashes = is_hash(old) && is_hash(new) && old.len() == new.len();
        if !hashes || name.is_empty() || name.chars().any(char::is_control) {
            return Err(PushError::Unreadable);
        }
        if let Some(capabilities) = capabilities {
            // Capabilities follow the first command. A server may accept them elsewhere too.
            if !self.refs.is_empty() {
                return Err(PushError::Unreadable);
            }
            self.capabilities =
                PushCapabilities::read(capabilities).ok_or(PushError::Unreadable)?;
        }
        if new.bytes().any(|digit| digit != b'0') {
            self.updated.push(name.to_owned());
        }
        self.refs.push(name.to_owned());
        Ok(())
    }

    /// The branch that a server's report says it accepted, of several the last one; `None` for a
    /// deletion. The report may be incomplete.
    pub(super) fn accepted_branch(&self, report: &[u8]) -> Option<String> {
        let lines = if self.capabilities.side_band.is_some() {
            let bands = packets(report).filter_map(|packet| packet.strip_prefix(b"\x01"));
            bands.collect::<Vec<_>>().concat()
        } else {
            report.to_vec()
        };
        let taken = packets(&lines).filter_map(|line| {
            let name = std::str::from_utf8(line.strip_prefix(b"ok ")?).ok()?;
            let name = name.trim_end_matches('\n');
            let branch = name.strip_prefix("refs/heads/")?;
            let own = self.updated.iter().any(|kept| kept == name);
            own.then(|| branch.to_owned())
        });
        taken.last()
    }

    /// Why this push is not allowed; `None` if it is.
    pub(super) fn refusal(&self, branches: &BranchPolicy) -> Option<PushError> {
        if self.refs.iter().any(|name| !branches.allow(name)) {
            return Some(match branches {
                BranchPolicy::Any => PushError::NoBranch,
                BranchPolicy::These(_) => PushError::OtherBranch(branches.clone()),
            });
        }
        // An option may have the server merge what is pushed, into any branch.
        (self.capabilities.options && *branches != BranchPolicy::Any)
            .then(|| PushError::Options(branches.clone()))
    }

    /// The report that git reads as the server's, saying that nothing was changed and why; `None`
    /// if git requested none.
    pub(super) fn report(&self, branches: &BranchPolicy, refusal: &PushError) -> Option<Vec<u8>> {
        if !self.capabilities.report {
            return None;
        }
        let sentence = refusal.to_string();
        let mut report = packet(b"unpack ok\n");
        for name in &self.refs {
            let innocent = branches.allow(name) && !self.capabilities.options;
            let why = if innocent {
                "nothing of this push was taken, because of its other refs"
            } else {
                &sentence
            };
            // A name too long for any server need not be repeated in full.
            let name: String = name.chars().take(1000).collect();
            report.extend(packet(format!("ng {name} {why}\n").as_bytes()));
        }
        report.extend(b"0000");
        let Some(most) = self.capabilities.side_band else {
            return Some(report);
        };
        let mut banded = Vec::with_capacity(report.len() + 64);
        for part in report.chunks(most - 5) {
            banded.extend(packet(&[b"\x01", part].concat()));
        }
        banded.extend(b"0000");
        Some(banded)
    }
}

impl PushCapabilities {
    fn read(text: &str) -> Option<Self> {
        if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return None;
        }
        let mut read = Self::default();
        for word in text.split(' ') {
            match word.split('=').next().unwrap_or_default() {
                "report-status" | "report-status-v2" => read.report = true,
                "side-band" if read.side_band.is_none() => read.side_band = Some(SHORT_LINE),
                "side-band-64k" => read.side_band = Some(MAX_LINE),
                "push-options" => read.options = true,
                // Git sends this in a line of its own.
                "push-cert" => return None,
                _ => {}
            }
        }
        Some(read)
    }
}

/// The packet lines in `bytes`, up to the first that is incomplete or invalid.
fn packets(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        loop {
            let (length, rest) = bytes.split_first_chunk::<4>()?;
            let size = packet_size(*length)?;
            if size == 0 {
                bytes = rest;
                continue;
            }
            let line = rest.get(..size.checked_sub(4)?)?;
            bytes = rest.get(line.len()..)?;
            return Some(line);
        }
    })
}

/// The length of a packet line according to its first four bytes, these included.
fn packet_size(length: [u8; 4]) -> Option<usize> {
    length.iter().try_fold(0, |size, byte| {
        let digit = char::from(*byte).to_digit(16)?;
        Some((size << 4) | usize::try_from(digit).ok()?)
    })
}

fn packet(content: &[u8]) -> Vec<u8> {
    [format!("{:04x}", content.len() + 4).as_bytes(), content].concat()
}

fn is_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
pub(super) mod tests {
    use lucid_mutations::mutated;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;

    #[test]
    fn a_report_says_which_branch_was_taken_however_it_is_packed() {
        let names = ["refs/heads/lucid/a", "refs/heads/lucid/b", "refs/tags/v1"];
        let report = list(&[
            "unpack ok\n",
            "ok refs/heads/lucid/a\n",
            "option refname refs/heads/x\n",
            "ng refs/heads/lucid/b failed\n",
            "ok refs/tags/v1\n",
            "ok refs/heads/main\n",
        ]);
        let plain = read(&push(&names, "\0 report-status")).unwrap();
        assert_eq!(plain.accepted_branch(&report).as_deref(), Some("lucid/a"));
        let banded = read(&push(&names, ASKED)).unwrap();
        let mut packed = packet(b"\x02remote: hello ok refs/heads/lucid/b\n");
        for part in report.chunks(7) {
            packed.extend(packet(&[b"\x01", part].concat()));
        }
        packed.extend(b"0000");
        assert_eq!(banded.accepted_branch(&packed).as_deref(), Some("lucid/a"));
        // Cut anywhere, it reports no other branch, and never panics.
        for end in 0..packed.len() {
            let taken = banded.accepted_branch(&packed[..end]);
            assert!(taken.is_none_or(|name| name == "lucid/a"), "cut at {end}");
        }
        let deleted = list(&[format!("{OLD} {NONE} refs/heads/lucid/a{ASKED}")]);
        assert_eq!(read(&deleted).unwrap().accepted_branch(&packed), None);
        assert_eq!(plain.accepted_branch(b"zzzz"), None);
        assert_eq!(plain.accepted_branch(b"0003"), None);
    }

    const OLD: &str = "1111111111111111111111111111111111111111";
    const NONE: &str = "0000000000000000000000000000000000000000";
    pub(in super::super) const ASKED: &str =
        "\0 report-status-v2 side-band-64k object-format=sha1 agent=git/2.47";

    fn list<T: AsRef<str>>(lines: &[T]) -> Vec<u8> {
        let lines = lines.iter().map(|line| packet(line.as_ref().as_bytes()));
        lines.chain([b"0000".to_vec()]).flatten().collect()
    }

    pub(in super::super) fn push(names: &[&str], asked: &str) -> Vec<u8> {
        let line = |(number, name): (usize, &&str)| {
            let asked = if number == 0 { asked } else { "" };
            format!("{NONE} {OLD} {name}{asked}")
        };
        let lines: Vec<String> = names.iter().enumerate().map(line).collect();
        list(&lines)
    }

    /// No error is one of a list that is not whole.
    fn read(bytes: &[u8]) -> Result<PushCommands, Option<PushError>> {
        let mut commands = PushCommands::default();
        match commands.read(bytes) {
            Ok(true) => Ok(commands),
            Ok(false) => Err(None),
            Err(error) => Err(Some(error)),
        }
    }

    fn taken(bytes: &[u8]) -> bool {
        read(bytes).is_ok_and(|commands| commands.refusal(&BranchPolicy::default()).is_none())
    }

    /// The refs that git itself would change, read as its receive-pack does: C strings, up to the
    /// first packet that is no line, whatever else follows.
    pub(in super::super) fn as_git_reads_them(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut refs = Vec::new();
        let mut rest = bytes;
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let Some(size) = packet_size(*length).filter(|size| *size >= 4) else {
                break;
            };
            let Some(line) = after.get(..size - 4) else {
                break;
            };
            rest = &after[size - 4..];
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let line = line.split(|byte| *byte == 0).next().unwrap();
            if !line.starts_with(b"shallow ") {
                refs.push(line.get(82..).unwrap_or_default().to_vec());
            }
        }
        refs
    }

    #[test]
    fn what_git_sends_is_read() {
        let shallow = format!("shallow {OLD}");
        let first = format!("{NONE} {OLD} refs/heads/lucid/a{ASKED}\n");
        let second = format!("{OLD} {NONE} refs/heads/lucid/b\n");
        let mut bytes = list(&[shallow, first, second]);
        bytes.extend(b"PACK and so on");
        let commands = read(&bytes).unwrap();
        assert_eq!(commands.refs, ["refs/heads/lucid/a", "refs/heads/lucid/b"]);
        assert_eq!(commands.capabilities.side_band, Some(MAX_LINE));
        assert!(commands.capabilities.report && !commands.capabilities.options);
        assert_eq!(commands.refusal(&BranchPolicy::default()), None);
    }

    #[test]
    fn a_push_to_what_is_not_allowed_is_refused_with_what_is() {
        for names in [
            &["refs/heads/main"][..],
            &["refs/heads/lucid/a", "refs/heads/main"],
            &["refs/tags/lucid/v1"],
            &["refs/heads/lucid/../main"],
        ] {
            let commands = read(&push(names, ASKED)).unwrap();
            let sentence = commands
                .refusal(&BranchPolicy::default())
                .unwrap()
                .to_string();
            assert!(
                sentence.contains("only to branches named lucid/*"),
                "{sentence}"
            );
        }
        let tag = read(&push(&["refs/tags/v1"], ASKED)).unwrap();
        let sentence = tag.refusal(&BranchPolicy::Any).unwrap().to_string();
        assert!(sentence.contains("to no tag"), "{sentence}");
        let main = read(&push(&["refs/heads/main"], ASKED)).unwrap();
        assert_eq!(main.refusal(&BranchPolicy::Any), None);
    }

    #[test]
    fn push_options_are_refused_unless_every_branch_may_be_changed() {
        for asked in [
            "\0push-options",
            "\0 report-status push-options agent=x",
            "\0push-options=1",
        ] {
            let commands = read(&push(&["refs/heads/lucid/a"], asked)).unwrap();
            let sentence = commands
                .refusal(&BranchPolicy::default())
                .unwrap()
                .to_string();
            assert!(sentence.contains("without push options"), "{sentence}");
            assert_eq!(commands.refusal(&BranchPolicy::Any), None);
        }
        let like = "\0 agent=push-options-like";
        let commands = read(&push(&["refs/heads/lucid/push-options"], like)).unwrap();
        assert_eq!(commands.refusal(&BranchPolicy::default()), None);
    }

    #[test]
    fn what_a_server_might_read_in_another_way_is_refused() {
        let good = "refs/heads/lucid/a";
        let with = |line: String| list(&[line]);
        let odd = [
            // Invalid lengths, and packets that some servers take for the end.
            b"+00a".to_vec(),
            b"zzzz".to_vec(),
            b"0001".to_vec(),
            b"0002".to_vec(),
            b"0003".to_vec(),
            b"0004".to_vec(),
            b"fff1".to_vec(),
            // Nothing to change.
            b"0000".to_vec(),
            with(format!("shallow {OLD}")),
            // Lines that are not commands.
            with("push-cert\0report-status".to_owned()),
            with(format!("shallow {OLD} {NONE} refs/heads/main")),
            with(format!("{OLD} {good}")),
            with(format!("{OLD}  {OLD} {good}")),
            with(format!("{OLD} {OLD}{OLD} {good}")),
            with(format!(
                "{OLD}{} {OLD}{} {good}",
                &OLD[..24],
                "x".repeat(24)
            )),
            with(format!("{NONE} {OLD} ")),
            with(format!("{NONE} {OLD} {good}\n\n")),
            with(format!("{NONE} {OLD} {good}\nx")),
            with(format!("{NONE} {OLD} {good}\0a\0b")),
            with(format!("{NONE} {OLD} {good}\0a\tpush-options")),
            with(format!("{NONE} {OLD} {good}\0push-cert=x")),
            list(&[
                format!("{NONE} {OLD} {good}"),
                format!("{NONE} {OLD} {good}\0push-options"),
            ]),
            packet(b"\xff\xfe"),
        ];
        for bytes in odd {
            let refused = PushCommands::default().read(&bytes);
            let text = String::from_utf8_lossy(&bytes);
            assert!(refused.is_err(), "{text:?}: {refused:?}");
        }
        let signed = with("push-cert\0report-status".to_owned());
        assert_eq!(read(&signed).unwrap_err(), Some(PushError::Signed));
    }

    #[test]
    fn a_list_without_an_end_is_refused() {
        let line = packet(format!("{NONE} {OLD} refs/heads/lucid/a").as_bytes());
        let mut bytes = line.repeat(MAX_COMMANDS / line.len());
        let mut commands = PushCommands::default();
        assert_eq!(commands.read(&bytes), Ok(false));
        bytes.extend(line);
        assert!(commands.read(&bytes).is_err());
    }

    #[test]
    fn a_report_names_every_ref_in_the_packets_that_git_asked_for() {
        let names = ["refs/heads/lucid/a", "refs/heads/main"];
        let report = |asked: &str| {
            let commands = read(&push(&names, asked)).unwrap();
            commands.report(&BranchPolicy::default(), &PushError::NoBranch)
        };
        let plain = report("\0 report-status").unwrap();
        let text = String::from_utf8(plain.clone()).unwrap();
        assert!(text.starts_with("000eunpack ok\n"), "{text}");
        let why = PushError::NoBranch;
        assert!(
            text.contains(&format!("ng refs/heads/main {why}\n")),
            "{text}"
        );
        assert!(
            text.contains("ng refs/heads/lucid/a nothing of this push"),
            "{text}"
        );
        assert!(text.ends_with("0000"), "{text}");
        for (asked, most) in [("side-band", SHORT_LINE), ("side-band-64k", MAX_LINE)] {
            let banded = report(&format!("\0 report-status {asked}")).unwrap();
            let (mut rest, mut inner) = (&banded[..], Vec::<u8>::new());
            while let Some((length, after)) = rest.split_first_chunk::<4>() {
                let size = packet_size(*length).unwrap();
                assert!(size <= most);
                let line = &after[..size.max(4) - 4];
                inner.extend(line.strip_prefix(b"\x01").unwrap_or(line));
                rest = &after[line.len()..];
            }
            assert_eq!(inner, plain);
        }
        assert_eq!(report(""), None);
        assert_eq!(report("\0 side-band-64k"), None);
    }

    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => Just("refs/heads/lucid/fix".to_owned()),
            1 => Just("refs/heads/main".to_owned()),
            1 => Just("refs/tags/lucid/v1".to_owned()),
            1 => "refs/heads/lucid/[a-z./@{~]{0,6}",
            1 => "\\PC{0,12}",
        ]
    }

    fn line() -> impl Strategy<Value = String> {
        let end = select(vec!["", "\n", ASKED, "\0push-options", "\0x\0y"]);
        prop_oneof![
            8 => (name(), end).prop_map(|(name, end)| format!("{NONE} {OLD} {name}{end}")),
            1 => Just(format!("shallow {OLD}")),
            1 => Just("push-cert".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn bytes_that_mean_nothing_are_read_without_harm(bytes in vec(any::<u8>(), 0..300)) {
            prop_assert!(!taken(&bytes) || !as_git_reads_them(&bytes).is_empty());
        }

        #[test]
        fn no_list_that_is_taken_changes_anything_else_as_git_reads_it(
            lines in vec(line(), 0..5),
            changes in vec((any::<Index>(), select(b"\0\n 0123af+zn/".to_vec()), any::<bool>()), 0..3),
        ) {
            let mut bytes = list(&lines);
            for (place, byte, replace) in changes {
                let place = place.index(bytes.len());
                if replace {
                    bytes[place] = byte;
                } else {
                    bytes.insert(place, byte);
                }
            }
            if taken(&bytes) {
                for name in as_git_reads_them(&bytes) {
                    let name = String::from_utf8(name).unwrap();
                    prop_assert!(
                        name.starts_with("refs/heads/lucid/") && !name.contains(".."),
                        "{name:?} came through"
                    );
                }
            }
        }

        #[test]
        fn no_mutated_list_that_is_taken_changes_anything_else_as_git_reads_it(
            bytes in mutated([
                push(&["refs/heads/lucid/a", "refs/heads/lucid/b/c"], ASKED),
                push(&["refs/heads/main"], "\0push-options"),
                list(&[format!("shallow {OLD}"), format!("{OLD} {NONE} refs/heads/lucid/a")]),
            ]),
        ) {
            if taken(&bytes) {
                for name in as_git_reads_them(&bytes) {
                    let name = String::from_utf8(name).unwrap();
                    prop_assert!(
                        name.starts_with("refs/heads/lucid/") && !name.contains(".."),
                        "{name:?} came through"
                    );
                }
            }
            if let Ok(commands) = read(&bytes) {
                let branches = BranchPolicy::default();
                if let Some(report) = commands.refusal(&branches).and_then(|why| commands.report(&branches, &why)) {
                    prop_assert!(packets(&report).count() > 0);
                }
            }
        }

        #[test]
        fn a_mutated_report_names_no_branch_that_was_not_pushed(
            report in mutated([
                list(&["unpack ok\n", "ok refs/heads/lucid/a\n", "ng refs/heads/lucid/b no\n", "ok refs/heads/main\n"]),
                [
                    packet(b"\x02remote: hello"),
                    packet(&[b"\x01", list(&["unpack ok\n", "ok refs/heads/lucid/a\n"]).as_slice()].concat()),
                    b"0000".to_vec(),
                ]
                .concat(),
            ]),
            banded: bool,
        ) {
            let asked = if banded { ASKED } else { "\0 report-status" };
            let pushed = read(&push(&["refs/heads/lucid/a", "refs/heads/lucid/b"], asked)).unwrap();
            if let Some(branch) = pushed.accepted_branch(&report) {
                prop_assert!(["lucid/a", "lucid/b"].contains(&branch.as_str()), "{}", branch);
            }
        }

        #[test]
        fn a_list_reads_the_same_in_pieces_as_in_one(
            lines in vec(line(), 0..5),
            behind in vec(any::<u8>(), 0..20),
            places in vec(any::<Index>(), 0..30),
        ) {
            let mut bytes = list(&lines);
            bytes.extend(behind);
            let whole = read(&bytes);
            let mut ends: Vec<usize> = places.iter().map(|place| place.index(bytes.len())).collect();
            ends.sort_unstable();
            ends.push(bytes.len());
            let mut commands = PushCommands::default();
            let mut last = Ok(false);
            for end in ends {
                last = commands.read(&bytes[..end]);
                if last != Ok(false) {
                    break;
                }
            }
            match whole {
                Ok(whole) => {
                    prop_assert_eq!(last, Ok(true));
                    prop_assert_eq!(commands.refs, whole.refs);
                }
                Err(error) => prop_assert!(last == Ok(false) || last.err() == error),
            }
        }
    }
}
