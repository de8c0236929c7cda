//! Finds the groups that this process is in, as /proc tells.
//!
//! # Invariants
//! - A group outside of what is mounted is not found, instead of being mistaken for another.
//! - Whatever /proc contains, finding nothing is the worst that happens.

use std::path::{Component, Path, PathBuf};

use super::Version;

/// A group that this process is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnGroup {
    pub(super) version: Version,
    /// Where it is found.
    pub(super) path: PathBuf,
    /// The controllers of its hierarchy, as the kernel calls them; empty in version 2.
    pub(super) controllers: Vec<String>,
    /// Whether it is the root of what this process can see.
    pub(super) is_root: bool,
}

/// The groups of a process by its `/proc/…/cgroup` and its `/proc/…/mountinfo`, each hierarchy once.
pub(super) fn own_groups(cgroup: &str, mountinfo: &str) -> Vec<OwnGroup> {
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
    let lines = cgroup.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let version = if number == "0" && controllers.is_empty() {
            Version::Two
        } else {
            Version::One
        };
        let names = controllers.split(',').filter(|name| !name.is_empty());
        let controllers: Vec<String> = names.map(str::to_owned).collect();
        let mut mounts = mounts.iter().filter(|mount| match version {
            Version::Two => mount.version == Version::Two,
            Version::One => {
                mount.version == Version::One
                    && !controllers.is_empty()
                    && controllers.iter().all(|name| mount.options.contains(name))
            }
        });
        let found = mounts.find_map(|mount| mount.place_of(path))?;
        Some(OwnGroup {
            version,
            path: found,
            controllers,
            is_root: path == "/",
        })
    });
    lines.collect()
}

/// A mounted hierarchy.
struct Mount {
    version: Version,
    /// The group that the mount shows at its mount point.
    root: PathBuf,
    mount_point: PathBuf,
    /// The options of the hierarchy, its controllers among them.
    options: Vec<String>,
}

impl Mount {
    /// Parses a line of mountinfo (proc(5)); `None` if it is no hierarchy's.
    fn parse(line: &str) -> Option<Self> {
        let (first, second) = line.split_once(" - ")?;
        let mut fields = first.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        let mut fields = second.split(' ');
        let version = match fields.next()? {
            "cgroup" => Version::One,
            "cgroup2" => Version::Two,
            _ => return None,
        };
        let options = fields.nth(1).unwrap_or_default().split(',');
        Some(Self {
            version,
            root: unescaped(root)?.into(),
            mount_point: unescaped(mount_point)?.into(),
            options: options.map(str::to_owned).collect(),
        })
    }

    /// Where the mount shows a group; `None` if it is outside of it.
    fn place_of(&self, group: &str) -> Option<PathBuf> {
        let below = Path::new(group).strip_prefix(&self.root).ok()?;
        let plain = |path: &Path| {
            let mut parts = path.components();
            parts.all(|part| matches!(part, Component::Normal(_) | Component::RootDir))
        };
        let fits = self.mount_point.is_absolute() && plain(below) && plain(&self.mount_point);
        fits.then(|| self.mount_point.join(below))
    }
}

/// Undoes the escapes of mountinfo: `\040` and the like.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'\\' {
            let (digits, after) = rest.split_at_checked(3)?;
            let digits = std::str::from_utf8(digits).ok()?;
            bytes.push(u8::from_str_radix(digits, 8).ok()?);
            rest = after;
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(cgroup: &str, mountinfo: &str) -> Vec<(Version, String)> {
        let found = own_groups(cgroup, mountinfo).into_iter();
        found
            .map(|it| (it.version, it.path.display().to_string()))
            .collect()
    }

    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 master:3 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn each_hierarchy_is_found_where_it_is_mounted() {
        let cgroup = "9:name=systemd:/\n4:memory:/api/a:b c\n1:cpu,cpuacct:/\n0::/user.slice\n";
        let expected = [
            (Version::One, "/sys/fs/cgroup/systemd/"),
            (Version::One, "/sys/fs/cgroup/memory/api/a:b c"),
            (Version::One, "/sys/fs/cgroup/cpu,cpuacct/"),
            (Version::Two, "/sys/fs/cgroup/unified/user.slice"),
        ];
        let found = found(cgroup, V1);
        let same = |(one, two): (&(Version, String), &(Version, &str))| {
            one.0 == two.0 && Path::new(&one.1) == Path::new(two.1)
        };
        assert!(found.iter().zip(&expected).all(same), "{found:?}");
        assert_eq!(found.len(), expected.len());
    }

    #[test]
    fn a_mount_of_a_subtree_shows_what_is_below_it_and_nothing_else() {
        let mount = "1 2 0:1 /docker/a\\040b /sys/fs/cgroup ro - cgroup2 cgroup rw";
        let two = |path: &str| found(&format!("0::{path}"), mount);
        assert_eq!(
            two("/docker/a b/c"),
            [(Version::Two, "/sys/fs/cgroup/c".to_owned())]
        );
        for outside in ["/", "/docker", "/docker/a b c", "/../x", "/docker/a b/../x"] {
            assert_eq!(two(outside), [], "{outside}");
        }
    }

    #[test]
    fn of_two_mounts_the_one_that_shows_the_group_is_taken() {
        let mounts = "1 2 0:1 /other /one rw - cgroup cgroup rw,memory
1 2 0:1 / /two rw - cgroup cgroup rw,memory";
        assert_eq!(
            found("4:memory:/mine", mounts),
            [(Version::One, "/two/mine".to_owned())]
        );
    }

    proptest! {
        #[test]
        fn whatever_proc_contains_what_is_found_is_below_a_mount_point(
            cgroup in r"([0-9]{0,2}(:|::)[a-z,=]{0,8}:?/?[a-z/.\\ ]{0,12}\n?){0,4}",
            mountinfo in r"([0-9 :]{0,6}/?[a-z/.\\0-7 ]{0,12} /m/?[a-z./]{0,4}( -)? cgroup2? x rw,?[a-z,]{0,8}\n?){0,4}",
        ) {
            for group in own_groups(&cgroup, &mountinfo) {
                prop_assert!(group.path.is_absolute());
                let up = group.path.components().any(|part| part == Component::ParentDir);
                prop_assert!(!up, "{:?}", group.path);
            }
        }

        #[test]
        fn any_text_is_read(cgroup in any::<String>(), mountinfo in any::<String>()) {
            for group in own_groups(&cgroup, &mountinfo) {
                prop_assert!(group.path.is_absolute());
            }
        }
    }
}
