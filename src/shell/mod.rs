//! Activation of an environment in a shell.
//!
//! - [`facts`] detects the kind of environment in a prefix from its files
//! - [`plan`] computes the changes from the facts and the current variables; pure
//! - [`render`] writes the changes as text for a shell to evaluate, and does all quoting
//!
//! The files that users source are in the directory `shell/` of the source tree, see
//! [`Shell::hook`].

pub mod facts;
pub mod plan;
pub mod render;

#[cfg(test)]
mod tests;

/// A shell that envfs supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shell {
    /// GNU bash, 4 or later.
    Bash,
    /// zsh, 5 or later.
    Zsh,
    /// Any other shell of the POSIX family (dash, ksh), for scripts.
    Posix,
}

impl Shell {
    /// All supported shells.
    pub const ALL: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Posix];

    /// Returns the shell with this name or path, if envfs supports it.
    pub fn from_name(name: &str) -> Option<Shell> {
        let base = name.rsplit('/').next().unwrap_or(name);
        // A login shell has a dash before its name.
        match base.trim_start_matches('-') {
            "bash" => Some(Shell::Bash),
            "zsh" => Some(Shell::Zsh),
            "posix" | "sh" | "dash" | "ash" | "ksh" | "mksh" | "busybox" => Some(Shell::Posix),
            _ => None,
        }
    }

    /// Returns the shell's name.
    pub fn name(self) -> &'static str {
        match self {
            Shell::Bash => "bash",
            Shell::Zsh => "zsh",
            Shell::Posix => "posix",
        }
    }

    /// Returns the text that defines the function `envfs` in a shell. There is none for
    /// [`Shell::Posix`], where scripts use `eval "$(envfs activate --shell posix NAME)"`.
    pub fn hook(self) -> Option<&'static str> {
        match self {
            Shell::Bash => Some(include_str!("../../shell/envfs.bash")),
            Shell::Zsh => Some(include_str!("../../shell/envfs.zsh")),
            Shell::Posix => None,
        }
    }
}
