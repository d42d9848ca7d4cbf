//! Activation of an environment in a shell.
//!
//! - [`condarc`] reads conda's settings
//! - [`facts`] detects the kind of environment in a prefix from its files
//! - [`module`] writes modulefiles, for shells that envfs does not know
//! - [`plan`] computes the changes from the facts and the current variables; pure
//! - [`render`] writes the changes as text for a shell to evaluate, and does all quoting
//!
//! The files that users source are in the directory `shell/` of the source tree, see
//! [`Shell::hook`].

pub mod condarc;
pub mod facts;
pub mod module;
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
    /// fish, 3.1 or later.
    Fish,
    /// Any other shell of the POSIX family (dash, ksh), for scripts.
    Posix,
}

impl Shell {
    /// All supported shells.
    pub const ALL: [Shell; 4] = [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Posix];

    /// Returns the shell with this name or path, if envfs supports it.
    pub fn from_name(name: &str) -> Option<Shell> {
        let base = name.rsplit('/').next().unwrap_or(name);
        // A login shell has a dash before its name.
        match base.trim_start_matches('-') {
            "bash" => Some(Shell::Bash),
            "zsh" => Some(Shell::Zsh),
            "fish" => Some(Shell::Fish),
            "posix" | "sh" | "dash" | "ash" | "ksh" | "mksh" | "busybox" => Some(Shell::Posix),
            _ => None,
        }
    }

    /// Returns the shell's name.
    pub fn name(self) -> &'static str {
        match self {
            Shell::Bash => "bash",
            Shell::Zsh => "zsh",
            Shell::Fish => "fish",
            Shell::Posix => "posix",
        }
    }

    /// Returns the extension of the activation scripts that this shell can source. As conda does,
    /// fish sources only scripts that were written for it.
    pub fn script_extension(self) -> &'static str {
        match self {
            Shell::Bash | Shell::Zsh | Shell::Posix => "sh",
            Shell::Fish => "fish",
        }
    }

    /// Returns the file that an interactive shell reads when it starts; none for
    /// [`Shell::Posix`], which stands for several shells.
    pub fn start_file(self) -> Option<&'static str> {
        match self {
            Shell::Bash => Some("~/.bashrc"),
            Shell::Zsh => Some("~/.zshrc"),
            Shell::Fish => Some("~/.config/fish/config.fish"),
            Shell::Posix => None,
        }
    }

    /// Returns the line with which the shell evaluates the output of a command.
    pub fn evaluating(self, command: &str) -> String {
        match self {
            Shell::Fish => format!("{command} | source"),
            _ => format!("eval \"$({command})\""),
        }
    }

    /// Returns the text that defines the function `envfs` in a shell. There is none for
    /// [`Shell::Posix`], where scripts use `eval "$(envfs activate --shell posix NAME)"`.
    pub fn hook(self) -> Option<&'static str> {
        match self {
            Shell::Bash => Some(include_str!("../../shell/envfs.bash")),
            Shell::Zsh => Some(include_str!("../../shell/envfs.zsh")),
            Shell::Fish => Some(include_str!("../../shell/envfs.fish")),
            Shell::Posix => None,
        }
    }
}
