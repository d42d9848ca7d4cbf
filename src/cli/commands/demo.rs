//! `envfs demo`: a tour with real files of this machine, in a temporary store.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Args as ClapArgs;

use crate::cli::context::Context;
use crate::cli::error::{CommandError, Result};
use crate::cli::output::{Tone, size};
use crate::daemon::failure::Kind;
use crate::shell::render::word;
use crate::sys::process;
use crate::sys::text::quoted;

/// Demonstrate envfs on files of this machine.
///
/// Imports a library tree (Python's own, or another large one) into a scratch store, mounts it,
/// changes files, shows status and diff, commits, lists the image with unsquashfs if it is
/// installed, discards, rolls back, and cleans up.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  envfs demo\n  envfs demo --source /usr/lib/python3")]
pub struct Args {
    /// Directory to import [default: Python's library tree, or another large one].
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
    /// Keep the scratch store and print its path.
    #[arg(long)]
    keep: bool,
}

/// Runs commands as a user would type them, and prints them.
struct Tour<'a> {
    context: &'a Context,
    program: PathBuf,
    home: PathBuf,
}

impl Args {
    /// Runs the command.
    pub fn run(&self, context: &Context) -> Result<()> {
        let source = match &self.source {
            Some(source) => source.clone(),
            None => find_source()?,
        };
        let kind = fs::metadata(&source).map_err(|error| {
            CommandError::of_named(format!("cannot read {}", quoted(&source)), &error)
        })?;
        if !kind.is_dir() {
            let message = format!("{} is not a directory", quoted(&source));
            return Err(CommandError::usage(message).hint("give a directory tree: --source DIR"));
        }
        let home = std::env::temp_dir().join(format!("envfs-demo-{}", std::process::id()));
        fs::create_dir(&home).map_err(|error| {
            let doing = format!("cannot create the scratch store {}", quoted(&home));
            CommandError::io(doing, &error)
                .hint("set TMPDIR to a directory with about a gigabyte of free space")
        })?;
        let tour = Tour {
            context,
            program: process::own_program(),
            home: home.clone(),
        };
        let result = tour.run(&source);
        // Clean up even after a failure.
        let unmounted = tour.run_silently(["unmount", "demo"]);
        if self.keep {
            context
                .output
                .note(format!("the scratch store is {}", quoted(&home)));
        } else if unmounted || !home.join("store/demo").exists() {
            fs::remove_dir_all(&home).or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(CommandError::io(
                    format!("cannot remove {}", quoted(&home)),
                    &error,
                )),
            })?;
        }
        result
    }
}

impl Tour<'_> {
    fn run(&self, source: &Path) -> Result<()> {
        let out = &self.context.output;
        self.title("1. Pack a real directory tree into one file")?;
        let (files, bytes) = measure(source);
        out.line(format!(
            "{}: {files} files and directories, {}",
            quoted(source),
            size(bytes)
        ))?;
        let source_text = source.as_os_str();
        self.envfs([OsStr::new("import"), source_text, OsStr::new("demo")])?;
        self.envfs(["list"])?;

        self.title("2. Use it as an ordinary writable directory")?;
        self.envfs(["mount", "demo"])?;
        let prefix = self.prefix()?;
        let victim = largest_file(&prefix).ok_or_else(|| {
            CommandError::new(
                Kind::NotFound,
                format!("{} contains no files", quoted(source)),
            )
        })?;
        let shown = word(victim.strip_prefix(&prefix).unwrap_or(&victim));
        out.line(format!("$ echo 'one more line' >> {shown}"))?;
        append(&victim)?;
        out.line("$ mkdir new-package    # and 500 new files in it")?;
        let package = prefix.join("new-package");
        fs::create_dir(&package)
            .map_err(|e| CommandError::io("cannot create a directory in the mount", &e))?;
        for number in 0..500 {
            let path = package.join(format!("module_{number:03}.py"));
            let text = format!("VALUE = {number}\n").repeat(200);
            fs::write(&path, text)
                .map_err(|e| CommandError::io("cannot write in the mount", &e))?;
        }
        if let Some(dir) = subdirectory(&prefix) {
            let name = word(dir.strip_prefix(&prefix).unwrap_or(&dir));
            out.line(format!(
                "$ mv {name} {name}-moved      # a directory of the image: one row, no copy"
            ))?;
            let mut target = dir.clone().into_os_string();
            target.push("-moved");
            fs::rename(&dir, target)
                .map_err(|e| CommandError::io("cannot rename in the mount", &e))?;
        }
        self.envfs(["status", "demo"])?;
        self.envfs(["diff", "demo", "new-package/module_000.py"])?;

        self.title("3. Commit: the cost follows the change")?;
        self.envfs(["commit", "demo", "-m", "add new-package"])?;
        self.envfs(["log", "demo"])?;
        let before = tree_digest(&prefix)?;
        self.envfs(["unmount", "demo"])?;
        self.envfs(["mount", "demo"])?;
        let same = tree_digest(&prefix)? == before;
        self.verdict(
            "after remounting, every name, size and byte is the same",
            same,
        )?;
        self.list_with_unsquashfs()?;

        self.title("4. Discard changes and roll back")?;
        out.line("$ rm -rf new-package")?;
        fs::remove_dir_all(&package)
            .map_err(|e| CommandError::io("cannot delete in the mount", &e))?;
        self.envfs(["discard", "demo", "-y"])?;
        self.verdict(
            "new-package is back",
            package.join("module_499.py").exists(),
        )?;
        self.envfs(["rollback", "demo"])?;
        self.verdict(
            "after the rollback, new-package does not exist",
            !package.exists(),
        )?;
        self.envfs(["verify", "demo"])?;
        self.envfs(["unmount", "demo"])?;
        out.line("")?;
        out.line(out.tone("That is envfs. Next: envfs import DIR NAME, then eval \"$(envfs hook bash)\" and envfs activate NAME", Tone::Good))
    }

    fn title(&self, text: &str) -> Result<()> {
        let out = &self.context.output;
        out.line("")?;
        out.line(out.tone(text, Tone::Strong))
    }

    fn verdict(&self, what: &str, holds: bool) -> Result<()> {
        if holds {
            let out = &self.context.output;
            return out.line(out.tone(&format!("yes: {what}"), Tone::Good));
        }
        Err(CommandError::new(
            Kind::Internal,
            format!("the demonstration failed; expected: {what}"),
        ))
    }

    fn command<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--home")
            .arg(&self.home)
            .args(words)
            .stdin(Stdio::null());
        command.env_remove("ENVFS_ENV");
        command
    }

    /// Prints a command, runs it, and prints how long it took.
    fn envfs<S: AsRef<OsStr>, const N: usize>(&self, words: [S; N]) -> Result<()> {
        let out = &self.context.output;
        let typed: Vec<_> = words.iter().map(word).collect();
        let typed = format!("envfs {}", typed.join(" "));
        out.line(out.tone(&format!("$ {typed}"), Tone::Dim))?;
        let began = Instant::now();
        let status = self
            .command(&words)
            .status()
            .map_err(|e| CommandError::io("cannot run envfs", &e))?;
        if !status.success() {
            return Err(CommandError::new(Kind::System, format!("`{typed}` failed"))
                .hint("envfs doctor checks what this machine lacks"));
        }
        out.line(out.tone(
            &format!("  ({:.2} s)", began.elapsed().as_secs_f64()),
            Tone::Dim,
        ))
    }

    fn run_silently<S: AsRef<OsStr>, const N: usize>(&self, words: [S; N]) -> bool {
        let mut command = self.command(&words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    fn envfs_json(&self, words: &[&str]) -> Result<serde_json::Value> {
        let output = self.command(words).stderr(Stdio::inherit()).output();
        let output = output.map_err(|e| CommandError::io("cannot run envfs", &e))?;
        serde_json::from_slice(&output.stdout).map_err(|e| {
            CommandError::new(
                Kind::Internal,
                format!("envfs {} did not print JSON: {e}", words.join(" ")),
            )
        })
    }

    fn path(&self, which: &str) -> Result<PathBuf> {
        let paths = self.envfs_json(&["paths", "demo", "--json"])?;
        let path = paths.get(which).and_then(|value| value.as_str());
        path.map(PathBuf::from).ok_or_else(|| {
            CommandError::new(
                Kind::Internal,
                format!("envfs paths does not print the {which}"),
            )
        })
    }

    fn prefix(&self) -> Result<PathBuf> {
        self.path("prefix")
    }

    /// Lists the image with an independent tool.
    fn list_with_unsquashfs(&self) -> Result<()> {
        let out = &self.context.output;
        let image = self.path("image")?;
        if process::find_program("unsquashfs").is_none() {
            return out.line("(unsquashfs is not installed; it is part of squashfs-tools)");
        }
        out.line(out.tone(
            "$ unsquashfs -l IMAGE | grep -c new-package    # an independent tool",
            Tone::Dim,
        ))?;
        let listing = Command::new("unsquashfs").arg("-l").arg(&image).output();
        let listing = listing.map_err(|e| CommandError::io("cannot run unsquashfs", &e))?;
        let text = String::from_utf8_lossy(&listing.stdout);
        let lines = text
            .lines()
            .filter(|line| line.contains("/new-package"))
            .count();
        out.line(lines.to_string())?;
        self.verdict(
            "the image is plain SquashFS and contains the new package",
            listing.status.success() && lines == 501,
        )
    }
}

/// Returns a large directory tree that exists on most machines.
fn find_source() -> Result<PathBuf> {
    let query = |program: &str, args: &[&str]| {
        let output = Command::new(program)
            .args(args)
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        (output.status.success() && path.is_dir()).then_some(path)
    };
    let python = "import sysconfig; print(sysconfig.get_paths()['stdlib'])";
    query("python3", &["-c", python])
        .or_else(|| query("rustc", &["--print", "sysroot"]).map(|root| root.join("lib")))
        .or_else(|| Some(PathBuf::from("/usr/share")).filter(|path| path.is_dir()))
        .ok_or_else(|| {
            CommandError::new(Kind::NotFound, "found no library tree to import")
                .hint("pass one: envfs demo --source DIR")
        })
}

fn walk(path: &Path) -> impl Iterator<Item = (walkdir::DirEntry, fs::Metadata)> {
    let entries = walkdir::WalkDir::new(path)
        .sort_by_file_name()
        .into_iter()
        .flatten();
    entries.filter_map(|entry| entry.metadata().ok().map(|meta| (entry, meta)))
}

fn measure(path: &Path) -> (u64, u64) {
    walk(path).fold((0, 0), |(files, bytes), (_, meta)| {
        (
            files + 1,
            bytes + if meta.is_file() { meta.len() } else { 0 },
        )
    })
}

fn largest_file(path: &Path) -> Option<PathBuf> {
    let files = walk(path).filter(|(_, meta)| meta.is_file());
    files
        .max_by_key(|(_, meta)| meta.len())
        .map(|(entry, _)| entry.into_path())
}

fn subdirectory(path: &Path) -> Option<PathBuf> {
    let mut below = fs::read_dir(path)
        .ok()?
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    below
        .find(|entry| entry.file_name() != "new-package")
        .map(|entry| entry.path())
}

fn append(path: &Path) -> Result<()> {
    use std::io::Write;
    let file = fs::OpenOptions::new().append(true).open(path);
    file.and_then(|mut file| file.write_all(b"one more line\n"))
        .map_err(|e| CommandError::io(format!("cannot append to {}", quoted(path)), &e))
}

/// Returns a digest of the names, kinds, link targets and contents of a tree.
fn tree_digest(root: &Path) -> Result<blake3::Hash> {
    use std::os::unix::ffi::OsStrExt;
    let mut hasher = blake3::Hasher::new();
    for (entry, meta) in walk(root) {
        let path = entry.path();
        hasher.update(path.as_os_str().as_bytes());
        hasher.update(&[0, u8::from(meta.is_dir()), u8::from(meta.is_symlink())]);
        if meta.is_file() {
            let read = fs::File::open(path).and_then(|file| {
                hasher.update_reader(file)?;
                Ok(())
            });
            read.map_err(|e| CommandError::io(format!("cannot read {}", quoted(path)), &e))?;
        } else if meta.is_symlink()
            && let Ok(target) = fs::read_link(path)
        {
            hasher.update(target.as_os_str().as_bytes());
        }
    }
    Ok(hasher.finalize())
}
