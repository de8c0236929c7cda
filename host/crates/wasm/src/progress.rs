//! The components being compiled and loaded now, for the log and for anyone who asks meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;

/// A kind of long-running work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivityKind {
    /// Components are fetched from their registries.
    Fetching,
    /// A component, or a whole deployment, is loaded and tried.
    Loading,
    /// A component is compiled to native code.
    Compiling,
}

impl ActivityKind {
    /// Its name in the list.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fetching => "fetching",
            Self::Loading => "loading",
            Self::Compiling => "compiling",
        }
    }
}

/// Work in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    /// Its subject: a plugin's name, or words such as `the deployment`.
    pub subject: String,
    /// The work being done.
    pub kind: ActivityKind,
    /// When it began.
    pub since: SystemTime,
}

/// All work in progress, oldest first. A clone is the same list.
#[derive(Debug, Clone, Default)]
pub struct Activities(Arc<Mutex<(u64, BTreeMap<u64, Activity>)>>);

impl Activities {
    /// Adds work to the list, where it stays until the returned guard is dropped.
    pub fn begin(&self, what: &str, kind: ActivityKind) -> ActivityGuard {
        let mut list = self.0.lock();
        let (next, all) = &mut *list;
        let number = *next;
        *next += 1;
        let work = Activity {
            subject: what.to_owned(),
            kind,
            since: SystemTime::now(),
        };
        all.insert(number, work);
        ActivityGuard {
            activities: self.clone(),
            number,
            started: Instant::now(),
        }
    }

    pub fn list(&self) -> Vec<Activity> {
        let list = self.0.lock();
        list.1.values().cloned().collect()
    }
}

/// One entry of the list.
#[derive(Debug)]
pub struct ActivityGuard {
    activities: Activities,
    number: u64,
    started: Instant,
}

impl ActivityGuard {
    /// Changes what is being done.
    pub(crate) fn set_kind(&self, kind: ActivityKind) {
        let mut list = self.activities.0.lock();
        if let Some(work) = list.1.get_mut(&self.number) {
            work.kind = kind;
        }
    }

    /// How long it has been going on, in milliseconds.
    pub(crate) fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        let mut list = self.activities.0.lock();
        list.1.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_listed_while_it_goes_on() {
        let works = Activities::default();
        let first = works.begin("coder", ActivityKind::Loading);
        let second = works.begin("mock", ActivityKind::Loading);
        first.set_kind(ActivityKind::Compiling);
        let shown = |works: &Activities| -> Vec<(String, &'static str)> {
            let list = works.list().into_iter();
            list.map(|work| (work.subject, work.kind.name())).collect()
        };
        assert_eq!(
            shown(&works),
            [
                ("coder".to_owned(), "compiling"),
                ("mock".to_owned(), "loading")
            ]
        );
        drop(first);
        assert_eq!(shown(&works), [("mock".to_owned(), "loading")]);
        drop(second);
        assert!(works.list().is_empty());
    }
}
