//! Tests that try to lead the host out of a workspace, or to hang it.

use std::os::unix::fs::symlink;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use lucid_mutations::mutated_text;
use proptest::prelude::*;
use rustix::fs::{RenameFlags, renameat_with};

use super::tree::MAX_NODES;
use super::*;

fn workspace() -> (tempfile::TempDir, Workspace) {
    let base = tempfile::tempdir().unwrap();
    let workspace = Workspace::create(base.path(), &"user".into(), SessionId::new()).unwrap();
    (base, workspace)
}

fn read(workspace: &Workspace, path: &str) -> Result<Vec<u8>, WorkspaceError> {
    workspace
        .path(path)
        .and_then(|path| workspace.read(&path, 1000))
}

#[test]
fn names_stay_apart_and_never_lead_elsewhere() {
    let long = "x".repeat(300);
    let longer = "x".repeat(301);
    let texts = [
        "", ".", "..", "a/b", "a%2fb", "a.b", ".a", "~", "A", "a", "é", "a b", &long, &longer,
    ];
    let names: std::collections::HashSet<String> =
        texts.iter().map(|text| safe_name(text)).collect();
    assert_eq!(names.len(), texts.len());
    for name in names {
        assert!(
            !name.contains('/') && !name.starts_with('.') && name.len() <= 100 && !name.is_empty(),
            "{name}"
        );
    }
}

#[test]
fn a_path_is_taken_from_the_root_however_it_is_written() {
    let (_base, workspace) = workspace();
    let real = format!("{}/src/a.py", workspace.host_path().display());
    for text in [
        "src/a.py",
        "/src/a.py",
        "/workspace/src/a.py",
        "./src//b/../a.py",
        &real,
    ] {
        assert_eq!(
            workspace.path(text).unwrap().display(),
            "/src/a.py",
            "{text}"
        );
    }
    assert!(workspace.path("/workspace").unwrap().is_root());
    assert_eq!(
        workspace.path("/workspaces/a").unwrap().display(),
        "/workspaces/a"
    );
    for text in [
        "..",
        "/../etc/passwd",
        "/workspace/../etc/passwd",
        "a/../../b",
        "a\0b",
    ] {
        assert!(
            matches!(workspace.path(text), Err(WorkspaceError::Traversal)),
            "{text}"
        );
    }
}

#[test]
fn what_is_written_is_read_back_and_belongs_to_the_box() {
    use std::os::unix::fs::MetadataExt;
    let (_base, workspace) = workspace();
    let path = workspace.path("/a/b/c.sh").unwrap();
    workspace.write(&path, b"one").unwrap();
    let on_host = workspace.host_path().join("a/b/c.sh");
    std::fs::set_permissions(&on_host, std::fs::Permissions::from_mode(0o755)).unwrap();
    workspace.write(&path, b"two").unwrap();
    assert_eq!(read(&workspace, "a/b/c.sh").unwrap(), b"two");
    let data = std::fs::metadata(&on_host).unwrap();
    assert_eq!(data.mode() & 0o777, 0o755, "the mode stays");
    if let Some(user) = sandbox_user() {
        assert_eq!(data.uid(), user);
        assert_eq!(
            std::fs::metadata(workspace.host_path().join("a"))
                .unwrap()
                .uid(),
            user
        );
    }
    assert_eq!(
        std::fs::read_dir(workspace.host_path().join("a/b"))
            .unwrap()
            .count(),
        1,
        "no temporary file stays"
    );
    assert!(matches!(
        workspace.write(&workspace.path("/a").unwrap(), b""),
        Err(WorkspaceError::NotAFile(_))
    ));
}

#[test]
fn links_that_lead_out_are_refused_for_reading_and_writing() {
    let (base, workspace) = workspace();
    let root = workspace.host_path();
    std::fs::write(base.path().join("secret"), "secret").unwrap();
    symlink(base.path().join("secret"), root.join("absolute")).unwrap();
    symlink("../../secret", root.join("relative")).unwrap();
    symlink(base.path(), root.join("folder")).unwrap();
    for path in ["absolute", "relative", "folder/secret"] {
        assert!(
            matches!(read(&workspace, path), Err(WorkspaceError::Traversal)),
            "{path}: {:?}",
            read(&workspace, path)
        );
        let written = workspace.write(&workspace.path(path).unwrap(), b"changed");
        assert!(
            matches!(written, Err(WorkspaceError::Traversal)),
            "{path}: {written:?}"
        );
    }
    assert!(
        workspace
            .write(&workspace.path("folder/new").unwrap(), b"")
            .is_err()
    );
    assert!(!base.path().join("new").exists());
    assert_eq!(
        std::fs::read(base.path().join("secret")).unwrap(),
        b"secret"
    );
}

#[test]
fn a_link_that_stays_inside_is_read_and_written_through() {
    let (_base, workspace) = workspace();
    workspace
        .write(&workspace.path("real").unwrap(), b"one")
        .unwrap();
    symlink("real", workspace.host_path().join("link")).unwrap();
    workspace
        .write(&workspace.path("link").unwrap(), b"two")
        .unwrap();
    assert_eq!(read(&workspace, "real").unwrap(), b"two");
    assert!(workspace.host_path().join("link").is_symlink());
    symlink("nowhere", workspace.host_path().join("dead")).unwrap();
    let written = workspace.write(&workspace.path("dead").unwrap(), b"two");
    assert!(
        matches!(written, Err(WorkspaceError::NotFound(_))),
        "{written:?}"
    );
    assert!(
        workspace.host_path().join("dead").is_symlink(),
        "it became a file"
    );
}

#[test]
fn a_tree_of_very_long_names_is_bounded_in_bytes() {
    let (_base, workspace) = workspace();
    let mut folder = workspace.host_path().to_owned();
    for level in 0..8 {
        folder = folder.join(format!("{level}").repeat(200));
        std::fs::create_dir(&folder).unwrap();
        for number in 0..200 {
            std::fs::write(folder.join(format!("{number:0>200}")), "").unwrap();
        }
    }
    let tree = serde_json::to_string(&workspace.tree().unwrap()).unwrap();
    assert!(
        tree.contains(&"0".repeat(190)) && tree.len() < 1_300_000,
        "{} bytes",
        tree.len()
    );
}

#[test]
fn a_link_swapped_in_while_the_host_looks_never_leads_out() {
    let (base, workspace) = workspace();
    let root = workspace.host_path().to_owned();
    std::fs::create_dir(base.path().join("outside")).unwrap();
    std::fs::write(base.path().join("outside/file"), "secret").unwrap();
    std::fs::create_dir(root.join("inside")).unwrap();
    std::fs::write(root.join("inside/file"), "fine").unwrap();
    symlink(base.path().join("outside"), root.join("link")).unwrap();
    // The folder and the link are exchanged atomically, so that the name always exists: were it
    // missing for a moment, a write would create it anew and the swapping would end there.
    let over = AtomicBool::new(false);
    let (mut fine, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let at = std::fs::File::open(&root).unwrap();
            while !over.load(Ordering::Relaxed) {
                renameat_with(&at, "inside", &at, "link", RenameFlags::EXCHANGE).unwrap();
            }
        });
        let path = workspace.path("inside/file").unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        for round in 0u64.. {
            match workspace.read(&path, 1000) {
                Ok(content) if content == b"fine" => fine += 1,
                Ok(_) => break,
                Err(_) => refused += 1,
            }
            if round % 50 == 0 {
                let _ = workspace.write(&path, b"fine");
            }
            if (fine > 500 && refused > 500) || Instant::now() > deadline {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(
        fine > 500 && refused > 500,
        "the link led out, or not both were met: fine {fine} times, refused {refused} times"
    );
    assert_eq!(
        std::fs::read(base.path().join("outside/file")).unwrap(),
        b"secret"
    );
}

#[test]
fn pipes_sockets_and_folders_are_not_files_and_do_not_hang() {
    let (_base, workspace) = workspace();
    let root = workspace.host_path();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("pipe"),
        rustix::fs::FileType::Fifo,
        0o666.into(),
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    std::fs::create_dir(root.join("folder")).unwrap();
    for path in ["pipe", "socket", "folder", "/"] {
        assert!(
            matches!(read(&workspace, path), Err(WorkspaceError::NotAFile(_))),
            "{path}: {:?}",
            read(&workspace, path)
        );
    }
    assert!(
        matches!(read(&workspace, "none/at/all"), Err(WorkspaceError::NotFound(path)) if path == "/none/at/all")
    );
}

#[test]
fn a_name_that_is_not_utf8_is_read_as_it_is_listed() {
    use std::os::unix::ffi::OsStrExt;
    let (_base, workspace) = workspace();
    let root = workspace.host_path();
    // The last is the encoding of the first, as a name of its own.
    let names = [&b"caf\xe9"[..], b"\xff\xfe", "caf\u{fffd}e9".as_bytes()];
    for name in names {
        let folder = root.join(std::ffi::OsStr::from_bytes(name));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    let mut contents = Vec::new();
    for folder in workspace.tree().unwrap() {
        let file = &folder.children.unwrap()[0];
        contents.push(read(&workspace, &file.path).unwrap());
        assert_eq!(workspace.path(&file.path).unwrap().display(), file.path);
    }
    contents.sort();
    let mut expected = names.map(<[u8]>::to_vec);
    expected.sort();
    assert_eq!(contents, expected);
}

#[test]
fn no_path_is_a_fault_of_the_host() {
    let (_base, workspace) = workspace();
    let root = workspace.host_path();
    symlink("itself", root.join("itself")).unwrap();
    for number in 0..100 {
        symlink(
            format!("chain{}", number + 1),
            root.join(format!("chain{number}")),
        )
        .unwrap();
    }
    std::fs::write(root.join("chain100"), "the end").unwrap();
    symlink("pipe", root.join("to-pipe")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), fifo, 0o666.into(), 0).unwrap();
    std::fs::write(root.join("file"), "").unwrap();
    let long = "n".repeat(300);
    let deep = "d/".repeat(5_000);
    for path in [
        "itself",
        "itself/a",
        "chain0",
        "file/a",
        &long,
        &deep,
        &format!("{long}/a"),
    ] {
        let error = read(&workspace, path).unwrap_err();
        assert!(
            matches!(error, WorkspaceError::NotFound(_)),
            "{path}: {error:?}"
        );
        let path = workspace.path(path).unwrap();
        assert!(matches!(
            workspace.is_folder(&path),
            Err(WorkspaceError::NotFound(_))
        ));
        assert!(matches!(
            workspace.list(&path, 9),
            Err(WorkspaceError::NotFound(_))
        ));
        let written = workspace.write(&path, b"x");
        assert!(
            matches!(written, Err(WorkspaceError::NotFound(_))),
            "{written:?}"
        );
    }
    assert!(!root.join("d").exists(), "folders of a path that cannot be");
    let error = read(&workspace, "to-pipe").unwrap_err();
    assert!(matches!(error, WorkspaceError::NotAFile(_)), "{error:?}");
    assert!(Workspace::check("a/../b").is_ok());
    assert!(matches!(
        Workspace::check("/workspace/../x"),
        Err(WorkspaceError::Traversal)
    ));
}

#[test]
fn a_file_that_is_too_large_is_named_with_its_size() {
    let (_base, workspace) = workspace();
    let file = std::fs::File::create(workspace.host_path().join("huge")).unwrap();
    file.set_len(10 << 30).unwrap();
    let error = read(&workspace, "huge").unwrap_err();
    assert_eq!(
        error.to_string(),
        "/huge is 10737418240 bytes; at most 1000 can be read"
    );
}

#[test]
fn a_tree_is_sorted_and_leaves_out_what_nobody_looks_for() {
    let (_base, workspace) = workspace();
    let root = workspace.host_path();
    for file in [
        "b.py",
        "src/z.py",
        "src/a.py",
        ".git/config",
        "node_modules/x/y.js",
        ".hidden/file",
        ".env",
    ] {
        workspace
            .write(&workspace.path(file).unwrap(), b"")
            .unwrap();
    }
    symlink("/etc", root.join("etc")).unwrap();
    use std::os::unix::ffi::OsStrExt;
    std::fs::write(root.join(std::ffi::OsStr::from_bytes(b"x\xff")), "").unwrap();
    let tree = serde_json::to_value(workspace.tree().unwrap()).unwrap();
    let expected = serde_json::json!([
        {"name": ".env", "type": "file", "path": "/.env"},
        {"name": "b.py", "type": "file", "path": "/b.py"},
        {"name": "etc", "type": "file", "path": "/etc"},
        {"name": "src", "type": "folder", "path": "/src", "children": [
            {"name": "a.py", "type": "file", "path": "/src/a.py"},
            {"name": "z.py", "type": "file", "path": "/src/z.py"},
        ]},
        {"name": "x\u{fffd}ff", "type": "file", "path": "/x\u{fffd}ff"},
    ]);
    assert_eq!(tree, expected);
}

#[test]
fn a_tree_of_hostile_size_and_depth_is_bounded() {
    let (_base, workspace) = workspace();
    let deep = vec!["d"; 200].join("/");
    std::fs::create_dir_all(workspace.host_path().join(deep)).unwrap();
    for number in 0..MAX_NODES + 10 {
        std::fs::write(workspace.host_path().join(format!("f{number}")), "").unwrap();
    }
    fn count(nodes: &[TreeNode]) -> usize {
        nodes
            .iter()
            .map(|node| 1 + count(node.children.as_deref().unwrap_or_default()))
            .sum()
    }
    assert!(count(&workspace.tree().unwrap()) <= MAX_NODES);
}

#[test]
fn removing_takes_the_users_folder_along_with_the_last_session() {
    let base = tempfile::tempdir().unwrap();
    let one = Workspace::create(base.path(), &"user".into(), SessionId::new()).unwrap();
    let two = Workspace::create(base.path(), &"user".into(), SessionId::new()).unwrap();
    one.remove().unwrap();
    one.remove().unwrap();
    assert!(two.host_path().is_dir());
    two.remove().unwrap();
    assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
}

proptest! {
    #[test]
    fn whatever_is_written_for_a_path_is_one_inside_the_workspace(
        text in prop_oneof![
            any::<String>(),
            mutated_text(["/workspace/src/../a//b", "a/./b/../../c", "src/\u{fffd}e9", "../x", "/workspaces/x"]),
        ],
    ) {
        if let Ok(path) = WorkspacePath::parse(&text, &["/workspace"]) {
            let parts: Vec<_> = path.below_root().components().collect();
            prop_assert!(parts.iter().all(|part| matches!(part, std::path::Component::Normal(_))), "{:?}", path);
            let again = WorkspacePath::parse(&path.relative(), &[]);
            prop_assert_eq!(again.ok(), Some(path));
        }
    }
}
