//! Writes a [`Script`] as text for fish.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::is_variable_name;
use crate::shell::plan::Script;

/// Quotes bytes so that fish reads them as exactly one word: in single quotes, only the single
/// quote and the backslash are special. Zero bytes are dropped, as in [`super::quote`].
pub fn quote(value: &OsStr) -> Vec<u8> {
    let mut out = vec![b'\''];
    for &byte in value.as_bytes() {
        match byte {
            b'\'' | b'\\' => out.extend([b'\\', byte]),
            0 => {}
            byte => out.push(byte),
        }
    }
    out.push(b'\'');
    out
}

/// Returns the text with which fish executes the script. Nothing in it ends the evaluation early:
/// fish reports an error in a sourced script or for a read-only variable and goes on.
///
/// The prompt is not changed here; the hook shows `ENVFS_PROMPT_MODIFIER`.
pub(super) fn render(script: &Script) -> Vec<u8> {
    let mut out = Vec::new();
    source(&mut out, &script.before);
    for name in script.unset.iter().filter_map(|name| name.to_str()) {
        if is_variable_name(name) {
            // A universal variable is stored for all sessions and must not be erased. An unset one
            // cannot hide it, but an empty one can.
            let text = format!(
                "if set -qU {name}; set -gx {name} ''; else; set -e -g {name} 2>/dev/null; \
                 set -qgx {name}; and {}; end\n",
                refusal(name)
            );
            out.extend_from_slice(text.as_bytes());
        }
    }
    for (name, value) in &script.export {
        if let Some(name) = name.to_str().filter(|name| is_variable_name(name)) {
            // `set` keeps the status of the command before it.
            out.extend_from_slice(format!("true; set -gx {name} ").as_bytes());
            out.extend_from_slice(&quote(value));
            out.extend_from_slice(format!(" 2>/dev/null; or {}\n", refusal(name)).as_bytes());
        }
    }
    source(&mut out, &script.after);
    out.extend_from_slice(b"true\n");
    out
}

fn refusal(name: &str) -> String {
    format!("builtin echo 'envfs: {name} cannot be changed in this shell' >&2")
}

/// Sources scripts of an environment, which may no longer exist if it was unmounted.
fn source(out: &mut Vec<u8>, scripts: &[PathBuf]) {
    for script in scripts {
        let quoted = quote(script.as_os_str());
        for part in [
            b"if builtin test -r ".as_slice(),
            &quoted,
            b"; builtin source ",
            &quoted,
            b"; end\n",
        ] {
            out.extend_from_slice(part);
        }
    }
}
