//! `envfs export` to standard output, and `envfs import` from standard input.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::tree::{self, Look};
use crate::support::{Disk, Run, TestEnv, has, run, samples, wait_for};

/// Makes an environment `e` of two revisions, which is mounted.
fn two_revisions(env: &TestEnv) {
    env.import_sample("e");
    let prefix = env.mount("e");
    let part = env.work().join("part");
    env.write(&part, samples::noise(3 << 20, 1));
    env.sh(&format!(
        "cp '{}' '{}/big'",
        part.display(),
        prefix.display()
    ))
    .ok();
    env.envfs(&["commit", "-q", "e", "-m", "two"]).ok();
}

fn input(env: &TestEnv, words: &[&str], bytes: &[u8]) -> Run {
    with_input(env, env.envfs_command(words), bytes)
}

/// Runs a command whose standard input has these bytes. It may end before it has read all.
fn with_input(env: &TestEnv, mut command: Command, bytes: &[u8]) -> Run {
    let file = env.work().join("in");
    fs::write(&file, bytes).unwrap();
    command.stdin(fs::File::open(file).unwrap());
    run(command)
}

/// Returns what a command writes to standard output.
fn bytes(env: &TestEnv, words: &str) -> Vec<u8> {
    let file = env.work().join("out");
    env.sh(&format!(
        "'{}' {words} >'{}'",
        env.program().display(),
        file.display()
    ))
    .ok();
    fs::read(file).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns what is in the directory of environments.
fn homes(env: &TestEnv) -> Vec<String> {
    let entries = fs::read_dir(env.store().join("store")).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_written_to_standard_output_is_the_file_and_can_be_piped_into_an_import() {
    for env in TestEnv::of_all_users() {
        two_revisions(&env);
        for words in ["", "--history", "--rev 1", "--exclude big"] {
            let file = env.work().join("file");
            let to_file = [
                &["export", "-qf", "e", text(&file)],
                &*words
                    .split(' ')
                    .filter(|word| !word.is_empty())
                    .collect::<Vec<_>>(),
            ]
            .concat();
            env.envfs(&to_file).ok();
            let streamed = bytes(&env, &format!("export e - {words}"));
            assert!(streamed == fs::read(file).unwrap(), "{words}");
        }
        let program = env.program().display().to_string();
        let said = env
            .sh(&format!(
                "'{program}' export --history e - | '{program}' import - f"
            ))
            .ok();
        assert!(said.err.contains("standard output: 2 revisions"), "{said}");
        assert!(said.err.contains("f: imported 2 revisions"), "{said}");
        env.sh(&format!("'{program}' export e - | '{program}' import - g"))
            .ok();
        assert_eq!((env.count(&["log", "f"]), env.count(&["log", "g"])), (2, 1));
        for name in ["f", "g"] {
            let [ours, theirs] = [env.mount(name), env.prefix("e")];
            assert_eq!(tree::digest(&env, &ours), tree::digest(&env, &theirs));
            env.envfs(&["unmount", name]).ok();
            env.verify(name);
        }
        // The same archive again, and a newer one.
        let again = format!("'{program}' export -q --history e - | '{program}' import - f");
        let said = env.sh(&again).ok();
        let words = "f: already has all revisions of standard input";
        assert!(said.err.contains(words), "{said}");
        env.sh(&format!("echo 3 >'{}/three'", env.prefix("e").display()))
            .ok();
        env.envfs(&["commit", "-q", "e"]).ok();
        assert!(env.sh(&again).ok().err.contains("f: imported 1 revision"));
        // A FIFO, as a shell makes for <(…) and >(…).
        let fifo = env.work().join("fifo");
        let fifo = text(&fifo);
        env.sh(&format!(
            "mkfifo '{fifo}'; '{program}' export e '{fifo}' & '{program}' import '{fifo}' h; wait $!"
        ))
        .ok();
        assert!(fs::metadata(fifo).unwrap().file_type().is_fifo());
        assert_eq!(homes(&env), ["e", "f", "g", "h"]);
    }
}

#[test]
fn archives_of_other_programs_are_read_from_standard_input() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.import_sample("e");
    for flag in ["", "-z"] {
        let script = format!(
            "tar -C '{}' {flag} -c . | '{}' import - t",
            source.display(),
            env.program().display()
        );
        env.sh(&script).ok();
        tree::assert_same_at(&source, &env.mount("t"), Look::ALL, flag);
        env.envfs(&["unmount", "t"]).ok();
        env.envfs(&["remove", "-y", "t"]).ok();
    }
}

#[test]
fn streams_that_cannot_be_imported_leave_nothing() {
    let Some(env) = TestEnv::new() else { return };
    two_revisions(&env);
    let history = bytes(&env, "export -q --history e -");
    let image = bytes(&env, "export -q e -");
    let refused = |words: &[&str], bytes: &[u8], code: i32, word: &str| {
        let done = input(&env, &[&["import", "-"], words].concat(), bytes);
        done.fails(code, &[word]);
        assert_eq!(homes(&env), ["e"], "{word}");
    };
    for cut in [700, history.len() / 2, history.len() - 1] {
        refused(&["x"], &history[..cut], 6, "standard input: truncated");
    }
    let longer = [&history[..], b"x"].concat();
    refused(&["x"], &longer, 6, "standard input: more than");
    refused(&["x"], &image[..image.len() / 2], 6, "truncated?");
    refused(&["x"], b"", 6, "standard input: empty");
    refused(&["x"], &[7; 4096], 6, "standard input: neither");
    refused(&[], &image, 2, "envfs import - NAME");
    refused(&["e"], &image, 4, "'e' already exists");
    refused(&["bad name"], &image, 2, "bad name");
    refused(&["x", "--in-place"], &image, 2, "directories");
    refused(&["x", "--compression", "xz"], &history, 2, "no effect");
    let mut damaged = history.clone();
    damaged[history.len() / 2] ^= 1;
    refused(&["x"], &damaged, 6, "standard input: blobs/sha256/");
    // It claims to be larger than any disk: nothing is read, and the sender ends.
    let mut header = history[..512].to_vec();
    header[124..136].copy_from_slice(b"77777777777\0");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    refused(&["x"], &header, 6, "a manifest of 8589934591 bytes");
    // What was piped is not lost if the disk of the store is full.
    if let Some(disk) = Disk::new(&env.work(), "mkfs.ext4", &["-q", "-F"], 4) {
        let small = env.work().join("small");
        fs::create_dir(&small).ok();
        let mut command = env.envfs_command(&["import", "-", "x"]);
        command.env("ENVFS_HOME", disk.at().join("store"));
        with_input(&env, command, &history).fails(8, &["standard input", "No space left"]);
        let left = fs::read_dir(disk.at().join("store/store")).unwrap();
        assert_eq!(left.count(), 0);
    }
}

#[test]
fn an_import_that_is_killed_while_it_receives_leaves_nothing() {
    let Some(env) = TestEnv::new() else { return };
    two_revisions(&env);
    let history = bytes(&env, "export -q --history e -");
    // Not SIGINT, which a shell may have told its background jobs to ignore.
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut command = env.envfs_command(&["import", "-", "x"]);
        command.stdin(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        // More than the pipe holds, so it has been read.
        std::io::Write::write_all(&mut pipe, &history[..1 << 20]).unwrap();
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        child.wait().unwrap();
        drop(pipe);
        assert_eq!(homes(&env), ["e"], "{signal}");
    }
}

#[test]
fn terminals_and_readers_that_stop_are_no_place_for_an_image() {
    let Some(env) = TestEnv::new() else { return };
    two_revisions(&env);
    let program = env.program().display().to_string();
    for history in ["", "--history"] {
        let script =
            format!("set -o pipefail; '{program}' export {history} e - | head -c 10 | wc -c");
        let mut command = env.command("bash");
        command.args(["-c", &script]);
        let done = run(command);
        assert_eq!((done.code, done.out.trim()), (141, "10"), "{done}");
        assert_eq!(done.err, "", "{done}");
        let full = env.sh(&format!("'{program}' export {history} e - >/dev/full"));
        full.fails(8, &["standard output", "No space left"]);
    }
    let file = env.work().join("file");
    // Not the link is replaced, but the file.
    fs::write(&file, "").unwrap();
    let link = env.work().join("link");
    std::os::unix::fs::symlink("file", &link).unwrap();
    env.envfs(&["export", "-f", "e", text(&link)]).ok();
    assert!(link.is_symlink() && fs::metadata(&file).unwrap().len() > 1000);
    env.envfs(&["export", "-f", "e", text(&env.work())])
        .fails(4, &["not a regular file"]);
    if !has("script") {
        return;
    }
    for (words, said) in [
        ("export e -", "standard output is a terminal"),
        ("export --history e -", "envfs export --history e - | ssh"),
        ("import - x", "standard input is a terminal"),
    ] {
        let mut command = env.command("script");
        command.args(["-qec", &format!("'{program}' {words}"), "/dev/null"]);
        let done = run(command);
        assert_eq!(done.code, 2, "{done}");
        assert!(done.out.contains(said), "{done}");
    }
    wait_for("the end of commands", || homes(&env) == ["e"]);
}
