//! The user ids of sandboxes: where the host is root, a session's processes and its files have one of
//! their own, so that the kernel's counts by user are counts by session, and no session may signal or
//! trace what another runs.
//!
//! The owner of a workspace is the record of who has which id: there is no table that could be lost. A
//! workspace of before, or of a container, is given to its new user when its next sandbox starts.
//! Containers keep the one id that is built into images: limits of theirs are counted by container, and
//! their processes are in namespaces of their own.
//!
//! # Invariants
//! - No two workspaces of this server get the same id, nor does one get the id of a process that runs.
//! - Giving a workspace away follows no link, and takes nothing that belonged to another user.
//! - Where the host is not root, nothing is given away: sandboxes have its own user.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use parking_lot::Mutex;

use crate::error::{SandboxError, io_error};
use crate::workspace::{SANDBOX_USER, adopt};

/// The range that is used if none is set: beyond those of users, of system services, and of what
/// usually maps containers' users.
const USUAL: UserIds = UserIds {
    first: 200_000,
    last: 265_535,
};

/// A range of user ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserIds {
    first: u32,
    last: u32,
}

impl UserIds {
    fn contains(self, user: u32) -> bool {
        (self.first..=self.last).contains(&user)
    }

    /// The id for sandboxes that are only tried. Several hosts may try one at the same time.
    fn of_trials(self) -> u32 {
        self.first
    }

    /// How many ids there are for sessions.
    fn count(self) -> u32 {
        self.last - self.first
    }

    /// The id for sessions with this number, counted from 0.
    fn nth(self, number: u32) -> u32 {
        self.first + 1 + number
    }
}

impl fmt::Display for UserIds {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}-{}", self.first, self.last)
    }
}

/// Which user ids sandboxes have, as an operator sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UserIdChoice {
    /// The usual range, if the host is root and may use it; otherwise one for all.
    #[default]
    Auto,
    /// One for all.
    Shared,
    /// These, or the host does not start.
    Range(UserIds),
}

/// A setting that is no choice of user ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a range of user ids")]
pub struct NoUserIds;

impl FromStr for UserIdChoice {
    type Err = NoUserIds;

    /// Reads `off`, or a range of at least two ids without root's and without the one that stands for
    /// none.
    fn from_str(text: &str) -> Result<Self, NoUserIds> {
        if text == "off" {
            return Ok(Self::Shared);
        }
        let (first, last) = text.split_once('-').ok_or(NoUserIds)?;
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u32>().ok().filter(|_| digits)
        };
        let (first, last) = (
            number(first).ok_or(NoUserIds)?,
            number(last).ok_or(NoUserIds)?,
        );
        let fits = first > 0 && first < last && last < u32::MAX;
        fits.then_some(Self::Range(UserIds { first, last }))
            .ok_or(NoUserIds)
    }
}

impl UserIdChoice {
    /// The range that it stands for, on this machine and for this user.
    fn resolve(self) -> Result<Option<UserIds>, SandboxError> {
        let own = rustix::process::geteuid();
        let maps = ["/proc/self/uid_map", "/proc/self/gid_map"]
            .map(|path| fs::read_to_string(path).unwrap_or_default());
        self.resolve_for(own.as_raw(), &maps)
    }

    fn resolve_for(self, own: u32, maps: &[String]) -> Result<Option<UserIds>, SandboxError> {
        let is_mapped = |range| maps.iter().all(|map| covers(map, range));
        match self {
            Self::Shared => Ok(None),
            Self::Auto => Ok(Some(USUAL).filter(|range| own == 0 && is_mapped(*range))),
            Self::Range(range) if range.contains(own) => Err(SandboxError::Users(format!(
                "SANDBOX_UIDS {range} includes {own}, which is this server's own user id: choose a range without it"
            ))),
            Self::Range(_) if own != 0 => Err(SandboxError::Users(
                "SANDBOX_UIDS needs a server that runs as root, and this one does not: remove the setting, or set it to off".to_owned(),
            )),
            Self::Range(range) if !is_mapped(range) => Err(SandboxError::Users(format!(
                "SANDBOX_UIDS {range} is not among the user ids of this container (/proc/self/uid_map and gid_map): choose a range that is, or set it to off"
            ))),
            Self::Range(range) => Ok(Some(range)),
        }
    }
}

/// Whether a user namespace has all of these ids, by its map (user_namespaces(7)).
fn covers(map: &str, range: UserIds) -> bool {
    let mut spans: Vec<(u64, u64)> = map
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let first: u64 = fields.next()?.parse().ok()?;
            let length: u64 = fields.nth(1)?.parse().ok()?;
            Some((first, first.checked_add(length)?))
        })
        .collect();
    spans.sort_unstable();
    let mut next = u64::from(range.first);
    for (first, end) in spans {
        if first <= next {
            next = next.max(end);
        }
    }
    next > u64::from(range.last)
}

/// Who the sandboxes of this host are.
#[derive(Debug)]
pub(crate) struct SandboxUsers {
    /// `None` if all have the same one.
    range: Option<UserIds>,
    /// Whether the host is root, and the usual range is not to be had.
    lacks_usual: bool,
    taken: Mutex<TakenIds>,
}

/// What is known of the ids in the range.
#[derive(Debug, Default)]
struct TakenIds {
    /// The workspace that each id was seen at.
    workspaces: HashMap<u32, PathBuf>,
    /// The folders whose workspaces were looked at.
    seen: HashSet<PathBuf>,
    /// Those whose workspaces are being given to them, and have another owner until that is done.
    giving: Vec<u32>,
    /// Where to go on looking for a free one: an id is given again as late as possible.
    next: u32,
}

impl SandboxUsers {
    pub(crate) fn new(choice: UserIdChoice) -> Result<Self, SandboxError> {
        let range = choice.resolve()?;
        let is_root = rustix::process::geteuid().is_root();
        Ok(Self {
            lacks_usual: choice == UserIdChoice::Auto && is_root && range.is_none(),
            ..Self::with_range(range)
        })
    }

    fn with_range(range: Option<UserIds>) -> Self {
        // Hosts that share a machine seldom meet if each begins elsewhere.
        let (somewhere, _) = uuid::Uuid::new_v4().as_u64_pair();
        let next = range.map_or(0, |range| {
            u32::try_from(somewhere % u64::from(range.count())).unwrap_or(0)
        });
        Self {
            range,
            lacks_usual: false,
            taken: Mutex::new(TakenIds {
                next,
                ..TakenIds::default()
            }),
        }
    }

    /// Why sessions share a user although nobody chose that, as a sentence for the operator.
    pub(crate) fn shortcoming(&self) -> Option<String> {
        self.lacks_usual.then(|| {
            format!(
                "All sessions share the user id {SANDBOX_USER}, since this server may not use {USUAL}: set SANDBOX_UIDS to a range that it may, or to off."
            )
        })
    }

    /// Whether each session has a user of its own.
    pub(crate) fn are_own(&self) -> bool {
        self.range.is_some()
    }

    /// The user of sandboxes that are only tried; `None` for the host's own.
    pub(crate) fn of_trials(&self) -> Option<u32> {
        let user = self.range.map_or(SANDBOX_USER, UserIds::of_trials);
        rustix::process::geteuid().is_root().then_some(user)
    }

    /// Gives a workspace to the user that sandboxes over it have, and returns that; `None` for the
    /// host's own. Blocks, for longer if the workspace had another user.
    pub(crate) fn take_workspace(&self, workspace: &Path) -> Result<Option<u32>, SandboxError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let given = match self.range {
            None => None,
            Some(range) => Some(self.user_for(range, workspace)?),
        };
        let user = given.as_ref().map_or(SANDBOX_USER, |it| it.user);
        adopt(workspace, user, |owner| self.is_sandbox_user(owner)).map_err(io_error(format!(
            "{} cannot be given to user {user}",
            workspace.display()
        )))?;
        Ok(Some(user))
    }

    /// Gives a workspace to the user of containers.
    pub(crate) fn give_to_containers(&self, workspace: &Path) -> Result<(), SandboxError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let user = SANDBOX_USER;
        adopt(workspace, user, |owner| self.is_sandbox_user(owner)).map_err(io_error(format!(
            "{} cannot be given to user {user}",
            workspace.display()
        )))
    }

    /// Whether files of this user in a workspace are those of a sandbox.
    fn is_sandbox_user(&self, owner: u32) -> bool {
        owner == SANDBOX_USER || self.range.is_some_and(|range| range.contains(owner))
    }

    fn user_for(&self, range: UserIds, workspace: &Path) -> Result<GivenId<'_>, SandboxError> {
        let mut taken = self.taken.lock();
        let user = Self::find_user(&mut taken, range, workspace)?;
        taken.workspaces.insert(user, workspace.to_owned());
        taken.giving.push(user);
        Ok(GivenId {
            user,
            taken: &self.taken,
        })
    }

    fn find_user(
        taken: &mut TakenIds,
        range: UserIds,
        workspace: &Path,
    ) -> Result<u32, SandboxError> {
        if let Some(base) = workspace.parent().and_then(Path::parent)
            && taken.seen.insert(base.to_owned())
        {
            taken.look_below(base, range);
        }
        let is_sessions = |user: &u32| *user != range.of_trials() && range.contains(*user);
        if let Some(user) = owner_of(workspace).filter(is_sessions)
            && taken.is_free_for(user, workspace)
        {
            return Ok(user);
        }
        let running = running_users();
        for _ in 0..range.count() {
            let user = range.nth(taken.next);
            taken.next = (taken.next + 1) % range.count();
            if !running.contains(&user) && taken.is_free_for(user, workspace) {
                return Ok(user);
            }
        }
        tracing::error!(%range, "all user ids for sandboxes are taken: widen SANDBOX_UIDS, or keep fewer workspaces (WORKSPACE_RETENTION)");
        Err(SandboxError::NoUser)
    }
}

impl TakenIds {
    /// Notes the ids of all workspaces, which are folders in folders of users.
    fn look_below(&mut self, base: &Path, range: UserIds) {
        let folders = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
        for users in folders(base) {
            for workspace in folders(&users.path()) {
                // Of a link, its own owner: it is no workspace.
                if let Ok(data) = workspace.metadata()
                    && range.contains(data.uid())
                {
                    self.workspaces.insert(data.uid(), workspace.path());
                }
            }
        }
    }

    /// Whether no other workspace has an id by now.
    fn is_free_for(&self, user: u32, workspace: &Path) -> bool {
        self.workspaces.get(&user).is_none_or(|other| {
            other == workspace || !(self.giving.contains(&user) || owner_of(other) == Some(user))
        })
    }
}

/// An id that a workspace is being given to.
#[derive(Debug)]
struct GivenId<'a> {
    user: u32,
    taken: &'a Mutex<TakenIds>,
}

impl Drop for GivenId<'_> {
    fn drop(&mut self) {
        let giving = &mut self.taken.lock().giving;
        if let Some(at) = giving.iter().position(|it| *it == self.user) {
            giving.swap_remove(at);
        }
    }
}

fn owner_of(path: &Path) -> Option<u32> {
    fs::symlink_metadata(path).ok().map(|data| data.uid())
}

/// The users of all processes on this machine.
fn running_users() -> HashSet<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let users = processes.filter_map(|process| Some(process.metadata().ok()?.uid()));
    users.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(text: &str) -> Option<UserIdChoice> {
        text.parse().ok()
    }

    fn range(first: u32, last: u32) -> UserIds {
        UserIds { first, last }
    }

    #[test]
    fn a_range_has_two_ids_at_least_and_never_roots() {
        assert_eq!(choice("off"), Some(UserIdChoice::Shared));
        let read = choice("200000-265535");
        assert_eq!(read, Some(UserIdChoice::Range(USUAL)));
        for no_range in [
            "",
            "on",
            "5",
            "0-9",
            "9-5",
            "7-7",
            "-5",
            "5-",
            "1-4294967295",
            "+1-5",
            "1-5-9",
            "1 - 5",
        ] {
            assert_eq!(choice(no_range), None, "{no_range}");
        }
    }

    #[test]
    fn ids_are_used_only_where_a_namespace_has_all_of_them() {
        assert!(covers("         0          0 4294967295\n", USUAL));
        assert!(!covers("0 100000 65536\n", USUAL));
        assert!(covers("0 1 10\n15 30 5\n10 20 5", range(3, 19)));
        assert!(!covers("0 1 10\n11 20 5", range(3, 12)));
        for odd in [
            "",
            "0",
            "a b c",
            "0 0 99999999999999999999",
            "18446744073709551615 0 9",
        ] {
            assert!(!covers(odd, range(1, 2)), "{odd}");
        }
    }

    #[test]
    fn a_range_that_cannot_be_used_is_refused_and_the_usual_one_left_out() {
        let all = ["0 0 4294967295".to_owned()];
        let few = ["0 100000 65536".to_owned()];
        let set = UserIdChoice::Range(range(2000, 3000));
        assert_eq!(
            UserIdChoice::Auto.resolve_for(0, &all).unwrap(),
            Some(USUAL)
        );
        for (own, maps) in [(1000, &all), (0, &few)] {
            assert_eq!(UserIdChoice::Auto.resolve_for(own, maps).unwrap(), None);
        }
        assert_eq!(set.resolve_for(0, &few).unwrap(), Some(range(2000, 3000)));
        for (own, maps, said) in [
            (2500, &all, "own user id"),
            (1000, &all, "runs as root"),
            (0, &["0 0 2100".to_owned()], "uid_map"),
        ] {
            let error = set.resolve_for(own, maps).unwrap_err().to_string();
            assert!(
                error.contains(said) && error.starts_with("SANDBOX_UIDS"),
                "{error}"
            );
        }
    }

    #[test]
    fn workspaces_keep_their_ids_and_none_has_anothers_until_all_are_taken() {
        if !rustix::process::geteuid().is_root() {
            // Then sandboxes have the host's user, whatever is set.
            let users = SandboxUsers::with_range(Some(range(3_000_000, 3_000_003)));
            assert_eq!(users.take_workspace(Path::new("/nowhere")).unwrap(), None);
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let workspace = |name: &str| {
            let path = base.path().join("user").join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let ids = range(3_000_000, 3_000_003);
        let users = SandboxUsers::with_range(Some(ids));
        let take = |users: &SandboxUsers, name: &str| users.take_workspace(&workspace(name));
        let given = ["one", "two", "three"].map(|name| take(&users, name).unwrap().unwrap());
        let mut sorted = given.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, [3_000_001, 3_000_002, 3_000_003]);
        assert!(matches!(take(&users, "four"), Err(SandboxError::NoUser)));

        // As the next host does.
        let next = SandboxUsers::with_range(Some(ids));
        assert_eq!(take(&next, "two").unwrap(), Some(given[1]));
        assert!(matches!(take(&next, "four"), Err(SandboxError::NoUser)));
        fs::remove_dir(workspace("one")).unwrap();
        assert_eq!(take(&next, "four").unwrap(), Some(given[0]));

        // Before it is the owner, an id is taken already.
        fs::remove_dir(workspace("four")).unwrap();
        let giving = next.user_for(ids, &workspace("five")).unwrap();
        assert_eq!(giving.user, given[0]);
        assert!(matches!(take(&next, "six"), Err(SandboxError::NoUser)));
        drop(giving);
        assert_eq!(take(&next, "six").unwrap(), Some(given[0]));

        // And one that gives all of them the same.
        let shared = SandboxUsers::with_range(None);
        assert_eq!(take(&shared, "two").unwrap(), Some(SANDBOX_USER));
    }
}
