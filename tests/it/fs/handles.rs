//! File handles (`name_to_handle_at`).

use std::path::Path;

use crate::support::{Run, TestEnv, has, run, skip_allowed};

/// `name PATH…` prints the handles; `open DIR HANDLE…` opens them and describes the objects; `write
/// DIR HANDLE TEXT` writes to the start of a file.
const SCRIPT: &str = r#"
import ctypes, errno, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def name(path):
    handle, mount = bytearray(struct.pack("Ii", 128, 0) + bytes(128)), ctypes.c_int()
    buffer = (ctypes.c_char * len(handle)).from_buffer(handle)
    if libc.name_to_handle_at(-100, os.fsencode(path), buffer, ctypes.byref(mount), 0) != 0:
        raise OSError(ctypes.get_errno(), path)
    return bytes(handle[:8 + struct.unpack_from("I", handle)[0]]).hex()
def opened(directory, handle, flags):
    buffer = ctypes.create_string_buffer(bytes.fromhex(handle))
    fd = libc.open_by_handle_at(directory, buffer, flags)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    return fd
mode, rest = sys.argv[1], sys.argv[2:]
if mode == "name":
    for path in rest:
        print(name(path))
else:
    directory = os.open(rest[0], os.O_RDONLY)
if mode == "write":
    os.write(opened(directory, rest[1], os.O_RDWR), rest[2].encode())
if mode == "open":
    for handle in rest[1:]:
        try:
            fd = opened(directory, handle, os.O_RDONLY)
            if os.path.isdir(f"/proc/self/fd/{fd}"):
                place = os.readlink(f"/proc/self/fd/{fd}")
                print("directory", os.path.relpath(place, rest[0]), *sorted(os.listdir(fd)))
            else:
                print("file", os.read(fd, 5).decode())
        except OSError as error:
            print(errno.errorcode[error.errno])
"#;

fn python(env: &TestEnv, words: &[&str]) -> Run {
    let mut command = env.command("python3");
    command.args(["-c", SCRIPT]).args(words);
    run(command).ok()
}

fn word(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn file_handles_are_valid_while_an_object_has_a_name() {
    if !has("python3") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    if !env.user().is_root() {
        return skip_allowed("opening by handle needs root");
    }
    env.import_sample("e");
    let at = env.mount("e");
    env.sh(&format!(
        "cd '{}'; mkdir made; echo madefile >made/file; echo passing >made/gone",
        at.display()
    ))
    .ok();
    // Paths, and what their handles refer to after the changes below.
    let expected = [
        ("lib/c.txt", "file gamma"),
        ("lib/a.txt", "file alpha"),
        ("lib/deep/x", "file x"),
        ("lib/deep", "directory moved x"),
        ("lib", "directory lib b.txt c.txt link"),
        (".", "directory . bin lib made moved"),
        ("made/file", "file madef"),
        ("made", "directory made file"),
        ("bin/tool", "ESTALE"),
        ("lib/deep/er/file", "ESTALE"),
        ("lib/deep/er", "ESTALE"),
        ("made/gone", "ESTALE"),
    ];
    let paths: Vec<_> = expected.iter().map(|(path, _)| at.join(path)).collect();
    let mut words = vec!["name"];
    words.extend(paths.iter().map(|path| word(path)));
    let named = python(&env, &words).out;
    let handles: Vec<&str> = named.lines().collect();
    env.sh(&format!(
        "cd '{}'; rm -r bin/tool lib/deep/er made/gone lib/a.txt; mv lib/deep moved; chmod 600 lib/b.txt",
        at.display()
    ))
    .ok();
    let check = |when: &str| {
        let mut words = vec!["open", word(&at)];
        words.extend(&handles);
        let said = python(&env, &words).out;
        for (said, (path, expected)) in said.lines().zip(expected) {
            assert_eq!(said, expected, "{path} {when}");
        }
        assert_eq!(said.lines().count(), expected.len());
    };
    check("with the kernel's caches");
    // After a remount, the kernel's caches are empty.
    let remount = || {
        env.envfs(&["unmount", "e"]).ok();
        env.mount("e");
    };
    remount();
    check("after a remount");
    env.envfs(&["commit", "-q", "e"]).ok();
    check("after a commit");
    remount();
    check("after a commit and a remount");
    // A file that is copied up without a lookup of its name is found by its name.
    remount();
    python(&env, &["write", word(&at), handles[0], "GAMMA"]);
    python(&env, &["write", word(&at), handles[2], "X"]);
    let content = format!("cd '{}'; cat lib/c.txt moved/x", at.display());
    assert_eq!(env.sh(&content).ok().out, "GAMMA\nX");
    remount();
    assert_eq!(env.sh(&content).ok().out, "GAMMA\nX");
    env.envfs(&["commit", "-q", "e"]).ok();
    assert_eq!(env.sh(&content).ok().out, "GAMMA\nX");
}
