//! Finds a program in `PATH` as a shell does, and executes it in place of this process.
//!
//! The search is separate from execution. `execvp` combines them: if a script's interpreter is
//! missing or a directory cannot be entered, it continues with the next directory of `PATH` and
//! silently runs another program of the same name.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::error::CommandError;
use crate::daemon::failure::Kind;
use crate::shell::plan::{SYSTEM_PATH, Variables};
use crate::sys::process::{self, error_text};
use crate::sys::text::quoted;

/// The interpreter of scripts that do not name one.
const SHELL: &str = "/bin/sh";
/// The number of bytes of a file's first line that are read.
const HEAD: u64 = 256;

/// Finds the file to execute for `program` with this `PATH`.
///
/// As in a shell, a name with a slash is a path, an empty entry of `PATH` is the working directory,
/// and directories and files that are not executable are skipped. Unlike in a shell, a lookup below
/// `prefix` that fails is an error: the environment's program is expected, not another one.
pub(super) fn find(program: &OsStr, path: &OsStr, prefix: &Path) -> Result<PathBuf, CommandError> {
    if program.as_bytes().contains(&b'/') {
        return check(Path::new(program)).map(|()| PathBuf::from(program));
    }
    let mut refused = None;
    if !program.is_empty() {
        for dir in path.as_bytes().split(|&byte| byte == b':') {
            let dir = match dir {
                b"" => Path::new("."),
                dir => Path::new(OsStr::from_bytes(dir)),
            };
            let file = dir.join(program);
            match fs::metadata(&file) {
                Ok(meta) if meta.is_dir() => {}
                Ok(_) if process::is_executable(&file) => return Ok(file),
                Ok(_) => drop(refused.get_or_insert(file)),
                Err(error) if dir.starts_with(prefix) => in_environment(&file, &error)?,
                Err(_) => {}
            }
        }
    }
    Err(match refused {
        Some(file) => not_executable(&file, "it is not executable"),
        None => not_found(&quoted(program), "not found in PATH"),
    })
}

/// Returns whether a program is in `PATH`.
pub(super) fn is_in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_else(|| SYSTEM_PATH.into());
    let mut dirs = path.as_bytes().split(|&byte| byte == b':');
    dirs.any(|dir| process::is_executable(&Path::new(OsStr::from_bytes(dir)).join(name)))
}

/// Handles a failed lookup in the environment's directories in `PATH`.
fn in_environment(file: &Path, error: &io::Error) -> Result<(), CommandError> {
    if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) {
        return Err(not_executable(file, &error_text(error)));
    }
    match fs::read_link(file) {
        Ok(target) => {
            let why = format!("it links to {}, which does not exist", quoted(target));
            Err(not_executable(file, &why))
        }
        Err(_) => Ok(()),
    }
}

/// Checks a program that is given as a path.
fn check(file: &Path) -> Result<(), CommandError> {
    match fs::metadata(file) {
        Ok(meta) if meta.is_dir() => Err(not_executable(file, "it is a directory")),
        Ok(_) if process::is_executable(file) => Ok(()),
        Ok(_) => Err(not_executable(file, "it is not executable")),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(not_found(&quoted(file), "no such file"))
        }
        Err(error) => Err(not_executable(file, &error_text(&error))),
    }
}

/// Executes a program found by [`find`]. Returns only on failure. As in a shell, a text file that
/// does not name an interpreter is run by `sh`.
pub(super) fn execute(
    file: &Path,
    name: &OsStr,
    arguments: &[OsString],
    variables: &Variables,
) -> CommandError {
    let words = |first: &[&OsStr]| -> Vec<OsString> {
        let first = first.iter().map(|&word| word.to_owned());
        first.chain(arguments.iter().cloned()).collect()
    };
    let error = process::execute(file, &words(&[name]), variables);
    match error.raw_os_error() {
        Some(nix::libc::ENOEXEC) if !is_binary(file) => {
            // A name that starts with a dash must not be read as an option.
            let script = match file.as_os_str().as_bytes().starts_with(b"-") {
                true => Path::new(".").join(file),
                false => file.to_owned(),
            };
            let words = words(&[OsStr::new(SHELL), script.as_os_str()]);
            let error = process::execute(Path::new(SHELL), &words, variables);
            not_executable(file, &format!("cannot run {SHELL}: {}", error_text(&error)))
        }
        _ => failure(file, &error),
    }
}

/// Returns the error for a program that was found but cannot be executed.
pub(super) fn failure(file: &Path, error: &io::Error) -> CommandError {
    match error.raw_os_error() {
        Some(nix::libc::ENOENT | nix::libc::EACCES) => not_executable(file, &why(file, error)),
        _ => not_executable(file, &error_text(error)),
    }
}

/// Explains why an existing file cannot be executed: the cause may be its interpreter.
fn why(file: &Path, error: &io::Error) -> String {
    let text = error_text(error);
    match interpreter(file) {
        Some(interpreter) => format!("bad interpreter {}: {text}", quoted(interpreter)),
        None if error.kind() == ErrorKind::NotFound && file.exists() => {
            String::from("its dynamic linker does not exist")
        }
        None => text,
    }
}

/// Returns the interpreter named in a script's first line.
fn interpreter(file: &Path) -> Option<PathBuf> {
    let head = first_line(file);
    let line = head.strip_prefix(b"#!")?.trim_ascii_start();
    let name = line.split(|byte| byte.is_ascii_whitespace()).next()?;
    Some(PathBuf::from(OsStr::from_bytes(name)))
}

/// Returns whether a file is binary: as in bash, if its first line contains a zero byte.
fn is_binary(file: &Path) -> bool {
    first_line(file).contains(&0)
}

fn first_line(file: &Path) -> Vec<u8> {
    let mut head = Vec::new();
    let read = File::open(file).and_then(|file| file.take(HEAD).read_to_end(&mut head));
    if let Err(error) = read {
        tracing::debug!(%error, "cannot read the first line");
    }
    let end = head.iter().position(|&byte| byte == b'\n');
    head.truncate(end.unwrap_or(head.len()));
    head
}

fn not_found(program: &str, why: &str) -> CommandError {
    CommandError::new(Kind::NotFound, format!("{program}: {why}"))
}

fn not_executable(file: &Path, why: &str) -> CommandError {
    let message = format!("cannot execute {}: {why}", quoted(file));
    CommandError::new(Kind::System, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn programs_are_found_as_in_a_shell() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let make = |path: &str, mode: u32| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        };
        make("env/bin/own", 0o755);
        make("env/bin/plain", 0o644);
        make("sys/own", 0o755);
        make("sys/plain", 0o755);
        make("sys/dir", 0o755);
        make("sys/gone", 0o755);
        make("sys/loop", 0o755);
        make("first/only", 0o600);
        fs::create_dir(root.join("env/bin/dir")).unwrap();
        symlink(root.join("absent/gone"), root.join("env/bin/gone")).unwrap();
        symlink("loop", root.join("env/bin/loop")).unwrap();
        symlink(root.join("absent/else"), root.join("first/gone")).unwrap();
        let path = ["first", "none", "env/bin", "sys"].map(|dir| root.join(dir));
        let path = std::env::join_paths(path).unwrap();
        let found = |program: &str| find(OsStr::new(program), &path, &root.join("env"));
        for (program, at) in [("own", "env/bin"), ("plain", "sys"), ("dir", "sys")] {
            assert_eq!(found(program).unwrap(), root.join(at).join(program));
        }
        for (program, kind, why) in [
            ("only", Kind::System, "not executable"),
            ("gone", Kind::System, "/absent/gone"),
            ("loop", Kind::System, "ymbolic link"),
            ("nothing", Kind::NotFound, "not found in PATH"),
            ("", Kind::NotFound, "not found in PATH"),
        ] {
            let error = found(program).unwrap_err();
            assert_eq!(error.kind, kind, "{program}: {error:?}");
            assert!(error.message.contains(why), "{program}: {error:?}");
        }
        // Elsewhere a dangling link is skipped, as in a shell.
        let other = find(OsStr::new("gone"), &path, Path::new("/env")).unwrap();
        assert_eq!(other, root.join("sys/gone"));
        for (program, kind) in [
            ("env/bin", Kind::System),
            ("env/bin/plain", Kind::System),
            ("env/bin/own/x", Kind::System),
            ("env/bin/none", Kind::NotFound),
        ] {
            let error = find(root.join(program).as_os_str(), &path, root).unwrap_err();
            assert_eq!(error.kind, kind, "{program}: {error:?}");
        }
    }
}
