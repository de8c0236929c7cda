//! Processor time where more of it is wanted than there is: users have equal shares, whatever the number of
//! their sandboxes.
//!
//! # Invariants
//! - The sandboxes of one user weigh together what another user's single one weighs.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::{Controller, Group, Version};

/// What groups weigh by default, and at least.
fn weights(version: Version) -> (&'static str, usize, usize) {
    match version {
        Version::One => ("cpu.shares", 1024, 2),
        Version::Two => ("cpu.weight", 100, 1),
    }
}

/// The groups of each user in the hierarchy that divides the processors.
#[derive(Debug, Default)]
pub(super) struct Shares(Mutex<HashMap<PathBuf, Vec<(Version, PathBuf)>>>);

impl Shares {
    /// Counts a sandbox as one of its user's. `user` is the folder of the user's workspaces.
    pub(super) fn join(&self, user: &Path, groups: &[Group]) {
        let mut users = self.0.lock();
        let of_user = users.entry(user.to_owned()).or_default();
        of_user.extend(dividing(groups).map(|group| (group.version, group.path.clone())));
        divide(of_user);
        if of_user.is_empty() {
            users.remove(user);
        }
    }

    /// Gives a sandbox's part back to its user's others.
    pub(super) fn leave(&self, user: &Path, groups: &[Group]) {
        let mut users = self.0.lock();
        let Some(of_user) = users.get_mut(user) else {
            return;
        };
        of_user.retain(|(_, path)| !dividing(groups).any(|group| group.path == *path));
        divide(of_user);
        if of_user.is_empty() {
            users.remove(user);
        }
    }
}

fn dividing(groups: &[Group]) -> impl Iterator<Item = &Group> {
    let divides = |group: &&Group| group.controllers.contains(&Controller::Processors);
    groups.iter().filter(divides)
}

/// Gives each group an equal part of what one weighs.
fn divide(groups: &[(Version, PathBuf)]) {
    for (version, path) in groups {
        let (file, whole, least) = weights(*version);
        let part = (whole / groups.len()).max(least);
        // One that is being removed needs none, and its limit holds for any other.
        if let Err(error) = fs::write(path.join(file), part.to_string()) {
            tracing::debug!(path = %path.display(), %error, "a control group's weight cannot be set");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sandboxes_of_a_user_weigh_together_what_anothers_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let group = |name: &str, version| {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            vec![Group {
                version,
                path,
                controllers: vec![Controller::Processors],
            }]
        };
        let weight = |groups: &[Group]| -> usize {
            let (file, ..) = weights(groups[0].version);
            let text = fs::read_to_string(groups[0].path.join(file)).unwrap();
            text.parse().unwrap()
        };
        for version in [Version::One, Version::Two] {
            let shares = Shares::default();
            let (_, whole, least) = weights(version);
            let name = |name: &str| format!("{version:?}-{name}");
            let (one, two) = (group(&name("one"), version), group(&name("two"), version));
            let other = group(&name("other"), version);
            let (alice, bob) = (Path::new("/alice"), Path::new("/bob"));
            shares.join(alice, &one);
            assert_eq!(weight(&one), whole);
            shares.join(bob, &other);
            shares.join(alice, &two);
            assert_eq!([&one, &two].map(|it| weight(it)), [whole / 2; 2]);
            assert_eq!(weight(&other), whole);
            shares.leave(alice, &one);
            assert_eq!(weight(&two), whole);
            let many: Vec<_> = (0..149)
                .map(|n| group(&name(&n.to_string()), version))
                .collect();
            many.iter().for_each(|it| shares.join(alice, it));
            assert_eq!(weight(&many[0]), (whole / 150).max(least));
            many.iter()
                .chain([&two])
                .for_each(|it| shares.leave(alice, it));
            shares.leave(bob, &other);
            assert!(shares.0.lock().is_empty());
        }
    }
}
