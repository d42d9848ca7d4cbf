//! Writes a [`Script`] as text for a shell to evaluate.
//!
//! Commands are written with a backslash so that aliases do not apply. All values are
//! single-quoted. `fish` writes the text for fish, whose syntax differs.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

mod fish;

pub use fish::quote as quote_for_fish;

use super::Shell;
use super::facts::is_variable_name;
use super::plan::Script;
use crate::sys::text::printable;

/// Quotes bytes so that a shell reads them as exactly one word.
///
/// In single quotes, only a single quote is special; it is written as `'\''`. Variables and paths
/// cannot contain a zero byte, so zero bytes are dropped.
pub fn quote(value: &OsStr) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 2);
    out.push(b'\'');
    for &byte in value.as_bytes() {
        match byte {
            b'\'' => out.extend_from_slice(b"'\\''"),
            0 => {}
            byte => out.push(byte),
        }
    }
    out.push(b'\'');
    out
}

/// Formats a word of a command line for the user to type: unquoted if that is safe, else in single
/// quotes, and if it is not printable, as `$'…'` (bash, zsh and ksh).
pub fn word(value: impl AsRef<OsStr>) -> String {
    let value = value.as_ref();
    let bytes = value.as_bytes();
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+=:,@%".contains(byte);
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && bytes.iter().all(is_plain) => text.to_owned(),
        Ok(text) if printable(text) == text && !text.contains('\t') => {
            String::from_utf8_lossy(&quote(value)).into_owned()
        }
        _ => {
            let mut out = String::from("$'");
            for &byte in bytes {
                match byte {
                    b'\'' | b'\\' => out.extend(['\\', char::from(byte)]),
                    b' '..=b'~' => out.push(char::from(byte)),
                    byte => out.push_str(&format!("\\{byte:03o}")),
                }
            }
            out.push('\'');
            out
        }
    }
}

/// Returns the text with which a shell executes the script. It is empty if nothing changes.
///
/// The shell evaluates the text to its end despite errors, so that an environment is never half
/// activated or half restored: errors in sourced scripts and variables that are read-only in this
/// shell are reported and skipped. (Assigning to a read-only variable may end the evaluation in
/// bash and POSIX shells, and always does in zsh.)
pub fn render(script: &Script, shell: Shell) -> Vec<u8> {
    let sourced = |scripts: &[PathBuf]| -> Vec<PathBuf> {
        let extension = OsStr::new(shell.script_extension());
        let own = scripts
            .iter()
            .filter(|path| path.extension() == Some(extension));
        own.cloned().collect()
    };
    let script = &Script {
        before: sourced(&script.before),
        after: sourced(&script.after),
        ..script.clone()
    };
    let mut out = Vec::new();
    if script.is_empty() {
        return out;
    }
    if shell == Shell::Fish {
        return fish::render(script);
    }
    source(&mut out, &script.before, shell);
    let mut changes: Vec<(&str, Vec<u8>)> = Vec::new();
    for name in script.unset.iter().filter_map(|name| name.to_str()) {
        changes.push((name, [b"\\unset ", name.as_bytes()].concat()));
    }
    for (name, value) in &script.export {
        if let Some(name) = name.to_str() {
            let value = quote(value);
            changes.push((name, [b"\\export ", name.as_bytes(), b"=", &value].concat()));
        }
    }
    if let Some(prompt) = &script.prompt {
        changes.push(("PS1", [b"PS1=".as_slice(), &quote(prompt)].concat()));
    }
    changes.retain(|(name, _)| is_variable_name(name));
    change(&mut out, &changes, shell);
    source(&mut out, &script.after, shell);
    // The shell's table of command locations is out of date.
    match shell {
        Shell::Zsh => line(&mut out, &[b"\\rehash || :"]),
        _ => line(&mut out, &[b"\\hash -r 2>/dev/null || :"]),
    }
    out
}

fn line(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
    out.push(b'\n');
}

/// Changes variables, except those that the shell does not allow to change.
fn change(out: &mut Vec<u8>, changes: &[(&str, Vec<u8>)], shell: Shell) {
    if changes.is_empty() {
        return;
    }
    if shell != Shell::Zsh {
        // A read-only variable cannot be unset. One subshell tries all of them; `command` prevents
        // a POSIX shell from exiting on failure.
        let names: Vec<&str> = changes.iter().map(|(name, _)| *name).collect();
        line(
            out,
            &[
                b"__envfs_fixed=$(for __envfs_name in ",
                names.join(" ").as_bytes(),
                b"; do \\command \\unset -v \"$__envfs_name\" 2>/dev/null || \\echo \" $__envfs_name \"; done)",
            ],
        );
    }
    for (name, command) in changes {
        let name = name.as_bytes();
        // zsh also has arrays, and variables whose assignment changes the user of the shell.
        let (is_fixed, pattern) = match shell {
            Shell::Zsh => (
                [b"${(t)", name, b"-}/", name].concat(),
                b"*readonly*|array*|association*|*/UID|*/EUID|*/GID|*/EGID|*/USERNAME".to_vec(),
            ),
            _ => (
                b"$__envfs_fixed".to_vec(),
                [b"*\" ", name, b" \"*"].concat(),
            ),
        };
        line(
            out,
            &[
                b"case ",
                &is_fixed,
                b" in (",
                &pattern,
                b") \\echo 'envfs: ",
                name,
                b" cannot be changed in this shell' >&2 ;; (*) ",
                command,
                b" ;; esac",
            ],
        );
    }
    if shell != Shell::Zsh {
        line(out, &[b"\\unset -v __envfs_fixed"]);
    }
}

/// Sources scripts of an environment. They may not support `set -u` or `set -e`, and may no longer
/// exist if the environment was unmounted. An error in one does not stop the evaluation.
fn source(out: &mut Vec<u8>, scripts: &[PathBuf], shell: Shell) {
    if scripts.is_empty() {
        return;
    }
    for option in [b"e", b"u"] {
        line(
            out,
            &[
                b"case $- in (*",
                option,
                b"*) __envfs_",
                option,
                b"=- ;; (*) __envfs_",
                option,
                b"=+ ;; esac",
            ],
        );
    }
    out.extend_from_slice(b"\\set +e +u\n");
    for script in scripts {
        let quoted = quote(script.as_os_str());
        let parts: [&[u8]; 2] = match shell {
            Shell::Zsh => [b"{ \\. ", b" } always { TRY_BLOCK_ERROR=0 }"],
            _ => [b"\\command \\. ", b""],
        };
        let [before, after] = parts;
        line(
            out,
            &[
                b"if [ -r ",
                &quoted,
                b" ]; then ",
                before,
                &quoted,
                after,
                b"; fi",
            ],
        );
    }
    out.extend_from_slice(
        b"\\set \"${__envfs_e}e\" \"${__envfs_u}u\"\n\\unset __envfs_e __envfs_u\n",
    );
}
