//! Operations in the mount, and the process that performs them.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::support::{TestEnv, samples};

/// One operation. Paths are relative to the directory of the process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FileOp {
    pub(super) path: String,
    pub(super) what: Action,
    /// Whether the result is synced.
    pub(super) sync: bool,
}

/// Content generated from a seed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Bytes {
    pub(super) seed: u64,
    pub(super) len: usize,
}

impl Bytes {
    pub(super) fn make(self) -> Vec<u8> {
        samples::noise(self.len, self.seed)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Action {
    /// Creates a new file.
    Create(Bytes),
    /// Truncates a file and writes it.
    Overwrite(Bytes),
    /// Writes at the end.
    Append(Bytes),
    /// Writes into the middle.
    Patch(usize, Bytes),
    /// Writes another file, syncs it, and renames it over this one.
    Replace(Bytes),
    /// Changes the length.
    Resize(usize),
    Symlink(String),
    Unlink,
    /// Renames a file or a directory, also over an existing one.
    Rename(String),
    /// Copies everything to a directory outside of the mount.
    CopyTo(PathBuf),
}

impl FileOp {
    /// Performs the operation.
    fn run(&self, root: &Path) -> io::Result<()> {
        let path = root.join(&self.path);
        let file = match &self.what {
            Action::Create(bytes) => {
                make_parent(&path)?;
                let mut file = File::options().write(true).create_new(true).open(&path)?;
                file.write_all(&bytes.make())?;
                Some(file)
            }
            Action::Overwrite(bytes) => {
                let mut file = File::options().write(true).truncate(true).open(&path)?;
                file.write_all(&bytes.make())?;
                Some(file)
            }
            Action::Append(bytes) => {
                let mut file = File::options().append(true).open(&path)?;
                file.write_all(&bytes.make())?;
                Some(file)
            }
            Action::Patch(at, bytes) => {
                let file = File::options().write(true).open(&path)?;
                file.write_all_at(&bytes.make(), *at as u64)?;
                Some(file)
            }
            Action::Resize(len) => {
                let file = File::options().write(true).open(&path)?;
                file.set_len(*len as u64)?;
                Some(file)
            }
            Action::Replace(bytes) => {
                let draft = root.join(DRAFT);
                let mut file = File::create(&draft)?;
                file.write_all(&bytes.make())?;
                file.sync_all()?;
                make_parent(&path)?;
                fs::rename(&draft, &path)?;
                None
            }
            Action::Symlink(target) => {
                make_parent(&path)?;
                symlink(target, &path)?;
                None
            }
            Action::Unlink => {
                fs::remove_file(&path)?;
                None
            }
            Action::Rename(to) => {
                let to = root.join(to);
                make_parent(&to)?;
                fs::rename(&path, &to)?;
                if self.sync {
                    sync_all_below(&to)?;
                    sync_dir(&to)?;
                }
                None
            }
            Action::CopyTo(to) => return copy_out(root, to),
        };
        match file {
            // On envfs this makes the name of a new file durable, too.
            Some(file) if self.sync => file.sync_all(),
            None if self.sync => sync_dir(&path),
            _ => Ok(()),
        }
    }
}

/// The name of a file before it is renamed.
pub(super) const DRAFT: &str = ".draft";

fn make_parent(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap())
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap())?.sync_all()
}

fn sync_all_below(path: &Path) -> io::Result<()> {
    for entry in walkdir::WalkDir::new(path).follow_root_links(false) {
        let entry = entry?;
        if entry.file_type().is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    Ok(())
}

fn copy_out(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in walkdir::WalkDir::new(from).min_depth(1) {
        let entry = entry?;
        let at = to.join(entry.path().strip_prefix(from).unwrap());
        let kind = entry.file_type();
        if kind.is_dir() {
            fs::create_dir_all(&at)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, &at)?;
        } else {
            fs::write(&at, fs::read(entry.path())?)?;
        }
    }
    Ok(())
}

/// Starts a program that was just copied. Retries while a child that another thread has forked
/// still has it open for writing.
fn spawn(command: &mut Command) -> Child {
    loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done.unwrap(),
        }
    }
}

/// A process that performs one operation after another.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
}

impl Worker {
    /// Starts one that works in `root`.
    pub(super) fn start(env: &TestEnv, root: &Path) -> Worker {
        let mut command = env.test_command("endure::worker::obeys_commands");
        command
            .env("ENVFS_TEST_WORKER_ROOT", root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = spawn(&mut command);
        let orders = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Worker {
            child,
            orders,
            answers,
        }
    }

    /// Performs an operation and returns its error.
    pub(super) fn perform(&mut self, op: &FileOp) -> Result<(), String> {
        let mut line = serde_json::to_string(op).unwrap();
        line.push('\n');
        self.orders.write_all(line.as_bytes()).unwrap();
        match self.answers.recv_timeout(Duration::from_secs(120)) {
            Ok(answer) if answer == "done" => Ok(()),
            Ok(answer) => Err(answer),
            Err(error) => panic!("{op:?} hangs: {error}"),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
#[ignore = "a child process of other tests"]
fn obeys_commands() {
    let Some(root) = std::env::var_os("ENVFS_TEST_WORKER_ROOT").map(PathBuf::from) else {
        return;
    };
    for line in io::stdin().lines() {
        let op: FileOp = serde_json::from_str(&line.unwrap()).unwrap();
        match op.run(&root) {
            Ok(()) => eprintln!("done"),
            Err(error) => eprintln!("{error}"),
        }
    }
}
