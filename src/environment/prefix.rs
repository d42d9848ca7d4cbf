//! Where an environment may be mounted.
//!
//! Programs in an environment embed its prefix, above all in the first line of scripts, which
//! the kernel cuts at 127 bytes. So prefixes are short, and never change by themselves.

use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use super::error::{Context, EnvironmentError, Result};
use super::layout::StoreLayout;
use super::name::EnvName;

/// What scripts of the environment begin with, after the prefix.
const INTERPRETER: &str = "/bin/python3.99";

/// The longest first line of a script, with `#!`, that every kernel obeys.
const SHEBANG_LIMIT: usize = 127;

/// From here on we warn: options of the interpreter need room too.
const SHEBANG_WARNING: usize = 80;

/// Whether the prefix must be free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PrefixUse {
    /// Nothing, or an empty directory, is there.
    New,
    /// What is there is imported and then makes place for the mount.
    TakeOver,
}

/// A checked prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The path, absolute.
    pub path: PathBuf,
    /// What the user should know, in words.
    pub warnings: Vec<String>,
}

impl Prefix {
    /// Checks the prefix that was asked for, or the default one of the environment.
    ///
    /// Whether another environment has the same prefix is not checked here.
    pub fn choose(
        store: &StoreLayout,
        name: &EnvName,
        wanted: Option<&Path>,
        usage: PrefixUse,
    ) -> Result<Prefix> {
        let path = match wanted {
            Some(path) => std::path::absolute(path).context(path, "find the prefix")?,
            None => store.default_prefix(name),
        };
        // Without a slash at the end, and without "." and "//" inside.
        let path: PathBuf = path.components().collect();
        let mounts = Mounts::read()?;
        check(store, path, usage, &mounts)
    }
}

fn check(store: &StoreLayout, path: PathBuf, usage: PrefixUse, mounts: &Mounts) -> Result<Prefix> {
    let refuse = |why: String| {
        Err(EnvironmentError::BadPrefix {
            // Shown on one line whatever is in it.
            path: PathBuf::from(path.to_string_lossy().escape_debug().to_string()),
            why,
        })
    };
    let bytes = path.as_os_str().as_bytes();
    if bytes.iter().any(|byte| byte.is_ascii_control()) {
        return refuse("it contains a newline or another control character".to_owned());
    }
    if bytes.contains(&b':') {
        return refuse("it contains ':', which separates the directories of PATH".to_owned());
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return refuse("it contains '..'; give the path without".to_owned());
    }
    if path.parent().is_none() {
        return refuse("it is the root of the file system".to_owned());
    }
    let shebang = "#!".len() + bytes.len() + INTERPRETER.len();
    if shebang > SHEBANG_LIMIT {
        let most = SHEBANG_LIMIT - "#!".len() - INTERPRETER.len();
        return refuse(format!(
            "it has {} bytes, but scripts work only up to {most}; choose a shorter path with \
             --prefix",
            bytes.len()
        ));
    }
    let mut warnings = Vec::new();
    if shebang > SHEBANG_WARNING {
        warnings.push(format!(
            "the prefix is long ({} bytes): scripts with options in their first line may fail",
            bytes.len()
        ));
    }
    if bytes.contains(&b' ') {
        warnings.push("the prefix contains a space: scripts in it may fail to start".to_owned());
    }

    match fs::symlink_metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).context(&path, "look at the prefix"),
        Ok(metadata) if metadata.is_symlink() => {
            return refuse("it is a symbolic link; give the path it leads to".to_owned());
        }
        Ok(metadata) if !metadata.is_dir() => {
            return refuse("it exists and is not a directory".to_owned());
        }
        Ok(_) if usage == PrefixUse::New => {
            let mut entries = fs::read_dir(&path).context(&path, "list the prefix")?;
            if entries.next().is_some() {
                return refuse(
                    "the directory is not empty; import it, or choose another path with --prefix"
                        .to_owned(),
                );
            }
        }
        Ok(_) => {}
    }

    // What matters below is where the path really is, which symbolic links may hide.
    let real = real_path(&path).context(&path, "find the prefix")?;
    let homes = store.homes();
    let homes = real_path(&homes).context(&homes, "find the store")?;
    if real.starts_with(&homes) || homes.starts_with(&real) {
        return refuse(format!(
            "it is in (or around) {}, where envfs keeps its own files",
            homes.display()
        ));
    }
    // Other FUSE file systems may hold a home directory, and take mounts.
    if let Some((mount, "fuse.envfs")) = mounts.holding(&real) {
        return refuse(format!(
            "it is inside another environment, mounted at {}; choose a path outside with --prefix",
            mount.display()
        ));
    }
    Ok(Prefix { path, warnings })
}

/// Resolves symbolic links as far as the path exists, and keeps the rest.
fn real_path(path: &Path) -> io::Result<PathBuf> {
    for ancestor in path.ancestors() {
        match fs::canonicalize(ancestor) {
            Ok(real) => {
                let rest = path.strip_prefix(ancestor).unwrap_or(Path::new(""));
                // Joining "" would add a slash, which does no harm to comparisons.
                return Ok(real.join(rest));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(path.to_owned())
}

/// What is mounted where, as this process sees it.
struct Mounts(Vec<(PathBuf, String)>);

impl Mounts {
    fn read() -> Result<Mounts> {
        let path = Path::new("/proc/self/mountinfo");
        let bytes = fs::read(path).context(path, "read the mounts")?;
        Ok(Mounts::parse(&bytes))
    }

    /// Reads lines like `36 35 98:0 / /mnt rw,noatime master:1 - ext4 /dev/sda rw`.
    fn parse(bytes: &[u8]) -> Mounts {
        let lines = bytes.split(|byte| *byte == b'\n');
        let mounts = lines.filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let path = unescape(fields.nth(4)?);
            let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
            let path = PathBuf::from(std::ffi::OsString::from_vec(path));
            Some((path, String::from_utf8_lossy(kind).into_owned()))
        });
        Mounts(mounts.collect())
    }

    /// Returns the mount on which a path lies: of the longest, the last, which is on top.
    fn holding(&self, path: &Path) -> Option<(&Path, &str)> {
        self.0
            .iter()
            .filter(|(mount, _)| path.starts_with(mount))
            .max_by_key(|(mount, _)| mount.components().count())
            .map(|(mount, kind)| (mount.as_path(), kind.as_str()))
    }
}

/// Undoes the `\040` of the kernel.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = |digit: u8| matches!(digit, b'0'..=b'7').then(|| u32::from(digit - b'0'));
        if byte == b'\\'
            && let Some([a, b, c]) = after.first_chunk::<3>().copied()
            && let (Some(a), Some(b), Some(c)) = (octal(a), octal(b), octal(c))
        {
            bytes.push((a * 64 + b * 8 + c) as u8);
            rest = after.get(3..).unwrap_or_default();
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn store() -> (tempfile::TempDir, StoreLayout, EnvName) {
        let dir = tempfile::tempdir().unwrap();
        let layout = StoreLayout::new(dir.path().join("home"));
        fs::create_dir_all(layout.homes()).unwrap();
        (dir, layout, EnvName::new("a").unwrap())
    }

    fn why(result: Result<Prefix>) -> String {
        match result {
            Err(EnvironmentError::BadPrefix { why, .. }) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_default_prefix_is_in_the_store_and_a_wish_is_obeyed() {
        let (dir, store, name) = store();
        let prefix = Prefix::choose(&store, &name, None, PrefixUse::New).unwrap();
        assert_eq!(prefix.path, store.prefixes().join("a"));
        let wish = dir.path().join("b//./c/");
        let prefix = Prefix::choose(&store, &name, Some(&wish), PrefixUse::New).unwrap();
        assert_eq!(prefix.path.as_os_str(), dir.path().join("b/c").as_os_str());
        fs::create_dir_all(&prefix.path).unwrap();
        Prefix::choose(&store, &name, Some(&wish), PrefixUse::New).unwrap();
    }

    #[test]
    fn an_occupied_prefix_is_refused_unless_it_is_taken_over() {
        let (dir, store, name) = store();
        let path = dir.path().join("full");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "").unwrap();
        let choose = |path: &Path, usage| Prefix::choose(&store, &name, Some(path), usage);
        assert!(why(choose(&path, PrefixUse::New)).contains("not empty"));
        choose(&path, PrefixUse::TakeOver).unwrap();
        let file = path.join("file");
        assert!(why(choose(&file, PrefixUse::TakeOver)).contains("not a directory"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(why(choose(&link, PrefixUse::TakeOver)).contains("symbolic link"));
        choose(&link.join("below"), PrefixUse::New).unwrap();
    }

    #[test]
    fn paths_that_scripts_and_shells_cannot_use_are_refused() {
        let (_dir, store, name) = store();
        let choose =
            |path: &str| Prefix::choose(&store, &name, Some(Path::new(path)), PrefixUse::New);
        assert!(why(choose("/tmp/a\nb")).contains("newline"));
        assert!(!choose("/tmp/a\nb").unwrap_err().to_string().contains('\n'));
        assert!(why(choose("/tmp/a:b")).contains("PATH"));
        assert!(why(choose("/tmp/../tmp/x")).contains(".."));
        assert!(why(choose("/")).contains("root"));
        let of_length = |length: usize| format!("/{}", "x".repeat(length - 1));
        assert!(choose(&of_length(63)).unwrap().warnings.is_empty());
        assert_eq!(choose(&of_length(64)).unwrap().warnings.len(), 1);
        assert_eq!(choose(&of_length(110)).unwrap().warnings.len(), 1);
        assert!(why(choose(&of_length(111))).contains("up to 110"));
        assert!(choose("/tmp/a b").unwrap().warnings[0].contains("space"));
    }

    #[test]
    fn the_store_itself_is_no_place_for_a_prefix() {
        let (_dir, store, name) = store();
        for path in [
            store.homes().join("x/y"),
            store.homes(),
            store.root().to_owned(),
        ] {
            let refused = Prefix::choose(&store, &name, Some(&path), PrefixUse::TakeOver);
            assert!(why(refused).contains("own files"));
        }
    }

    #[test]
    fn a_prefix_inside_another_environment_is_refused() {
        let (dir, store, _) = store();
        let real = fs::canonicalize(dir.path()).unwrap();
        let line = |at: &Path, kind: &str| {
            format!(
                "36 35 98:0 / {} rw shared:1 master:2 - {kind} x rw\n",
                at.display()
            )
        };
        let at = real.join("mount");
        let try_with = |text: String| {
            let mounts = Mounts::parse(text.as_bytes());
            check(&store, at.join("env"), PrefixUse::New, &mounts)
        };
        let root = line(Path::new("/"), "ext4");
        let ours = "fuse.envfs";
        let refused = why(try_with(root.clone() + &line(&at, ours)));
        assert!(refused.contains("another environment"), "{refused}");
        try_with(root.clone() + &line(&at, "fuse.sshfs")).unwrap();
        try_with(root.clone() + &line(&at, ours) + &line(&at.join("env"), "tmpfs")).unwrap();
        try_with(root + &line(&at, ours) + &line(&at, "tmpfs")).unwrap();
    }

    #[test]
    fn mount_points_are_unescaped() {
        let mounts = Mounts::parse(b"1 2 0:1 / /a\\040b\\134\\9 rw - tmpfs x rw\nshort line\n");
        assert_eq!(mounts.0, [(PathBuf::from("/a b\\\\9"), "tmpfs".to_owned())]);
        assert!(
            Mounts::read()
                .unwrap()
                .holding(Path::new("/proc"))
                .is_some()
        );
    }
}
