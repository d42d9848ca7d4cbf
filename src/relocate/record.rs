//! `RECORD`, in which installers of Python packages list the digest and size of each file.

use super::splice::{Changed, Splice, base64};

/// Returns the replacements of the digests and sizes of changed files. `site` is the directory
/// that the paths are relative to. A digest that did not fit the file before stays.
pub(super) fn digests<'a>(
    data: &[u8],
    site: &[u8],
    changed: impl Fn(&[u8]) -> Option<&'a Changed>,
) -> Vec<Splice> {
    let mut splices = Vec::new();
    let mut at = 0;
    for line in data.split_inclusive(|&byte| byte == b'\n') {
        let start = at;
        at += line.len();
        let Some((path, rest)) = field(line) else {
            continue;
        };
        let fields = line.get(rest..).unwrap_or_default().trim_ascii_end();
        let mut parts = fields.splitn(2, |&byte| byte == b',');
        let (Some(digest), Some(size)) = (parts.next(), parts.next()) else {
            continue;
        };
        let Some(changed) = resolve(site, &path).and_then(|path| changed(&path)) else {
            continue;
        };
        let spelled = |digest: &[u8; 32]| format!("sha256={}", base64(digest));
        if digest != spelled(&changed.before).as_bytes() {
            continue;
        }
        splices.push(Splice {
            at: start + rest,
            len: digest.len(),
            with: spelled(&changed.after).into_bytes(),
        });
        if size == changed.size_before.to_string().as_bytes() {
            splices.push(Splice {
                at: start + rest + digest.len() + 1,
                len: size.len(),
                with: changed.size_after.to_string().into_bytes(),
            });
        }
    }
    splices
}

/// Parses the first field of a line. Returns it and where the next begins.
fn field(line: &[u8]) -> Option<(Vec<u8>, usize)> {
    if line.first() != Some(&b'"') {
        let len = line.iter().position(|&byte| byte == b',')?;
        return Some((line.get(..len)?.to_vec(), len + 1));
    }
    let mut path = Vec::new();
    let mut at = 1;
    loop {
        match (*line.get(at)?, line.get(at + 1)) {
            (b'"', Some(b'"')) => {
                path.push(b'"');
                at += 2;
            }
            (b'"', Some(b',')) => return Some((path, at + 2)),
            (b'"', _) => return None,
            (byte, _) => {
                path.push(byte);
                at += 1;
            }
        }
    }
}

/// Returns a path relative to the root of the tree; `None` if it leads out of it.
fn resolve(site: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    if path.starts_with(b"/") {
        return None;
    }
    let mut parts: Vec<&[u8]> = site.split(|&byte| byte == b'/').collect();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b".." => drop(parts.pop()?),
            b"." | b"" => {}
            name => parts.push(name),
        }
    }
    Some(parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::splice::apply;
    use super::*;

    #[test]
    fn digests_and_sizes_of_changed_files_are_replaced() {
        let changed = Changed::of(b"before", b"afterwards");
        let old = |path: &str| format!("{path},sha256={},6\r\n", base64(&changed.before));
        let new = |path: &str| format!("{path},sha256={},10\r\n", base64(&changed.after));
        let edited = "../../../bin/other,sha256=abc,6\r\n";
        let text = [
            &old("../../../bin/pip")[..],
            &old("\"pip/a,b.py\""),
            "pip/x.pyc,,\r\n",
            edited,
            &old("pip/same.py"),
            "pip-1.dist-info/RECORD,,",
        ]
        .concat();
        let known: [&[u8]; 3] = [b"bin/pip", b"lib/python3/site/pip/a,b.py", b"bin/other"];
        let splices = digests(text.as_bytes(), b"lib/python3/site", |path| {
            known.contains(&path).then_some(&changed)
        });
        let expected = [
            &new("../../../bin/pip")[..],
            &new("\"pip/a,b.py\""),
            "pip/x.pyc,,\r\n",
            edited,
            &old("pip/same.py"),
            "pip-1.dist-info/RECORD,,",
        ]
        .concat();
        assert_eq!(apply(text.as_bytes(), &splices), expected.as_bytes());
    }

    #[test]
    fn paths_that_lead_out_of_the_tree_are_ignored() {
        assert_eq!(resolve(b"lib/site", b"../../../x"), None);
        assert_eq!(resolve(b"lib/site", b"/x"), None);
        assert_eq!(
            resolve(b"lib/site", b"./a/../b"),
            Some(b"lib/site/b".to_vec())
        );
    }
}
