//! Modulefiles: an activation for Lmod and Environment Modules.
//!
//! A modulefile is text that is evaluated again and again, in shells that are not known when it is
//! written. So it has the variables of an activation in a shell in which nothing is active, and
//! leaves it to the module system to restore what they replace.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::facts::PrefixFacts;
use super::plan::{self, Settings, Variables};

/// The language of a modulefile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// For Lmod.
    Lua,
    /// For Environment Modules and Lmod.
    Tcl,
}

/// What a modulefile does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module<'a> {
    /// The environment.
    pub facts: &'a PrefixFacts,
    /// The program and the words that mount it.
    pub mount: Vec<String>,
    /// The command that printed the modulefile, for its head.
    pub command: String,
}

/// A text that cannot be written in a modulefile, because it is not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotText(pub PathBuf);

/// The lines of a modulefile that do not depend on its language.
struct Parts {
    /// The directories to put first in `PATH`, in order.
    path: Vec<String>,
    set: Vec<(String, String)>,
    unset: Vec<String>,
    activate: Vec<String>,
    deactivate: Vec<String>,
}

impl Module<'_> {
    /// Returns the text.
    pub fn render(&self, language: Language) -> Result<String, NotText> {
        let parts = self.parts()?;
        Ok(match language {
            Language::Lua => self.lua(&parts),
            Language::Tcl => self.tcl(&parts),
        })
    }

    fn parts(&self) -> Result<Parts, NotText> {
        let texts = |paths: &[PathBuf]| -> Result<Vec<String>, NotText> {
            paths.iter().map(|path| text(path)).collect()
        };
        let script = plan::activate(self.facts, &Variables::new(), &Settings::default());
        let mut set = Vec::new();
        for (name, value) in &script.export {
            let name = text(Path::new(name))?;
            // `PATH` is extended; the others are for `envfs deactivate`, or change with a commit.
            let is_left_out = ["PATH", "ENVFS_SHLVL", "ENVFS_REV"].contains(&name.as_str())
                || name.starts_with("__");
            if !is_left_out {
                set.push((name, text(Path::new(value))?));
            }
        }
        let mut unset: Vec<String> = self
            .facts
            .variables
            .iter()
            .filter(|(_, value)| value.is_none())
            .filter_map(|(name, _)| name.to_str().map(str::to_owned))
            .collect();
        if self.facts.venv_prompt.is_some() {
            unset.push("PYTHONHOME".to_owned());
        }
        Ok(Parts {
            path: texts(&self.facts.path)?,
            set,
            unset,
            activate: texts(&self.facts.activate_scripts)?,
            deactivate: texts(&self.facts.deactivate_scripts)?,
        })
    }

    fn head(&self, comment: &str, parts: &Parts) -> String {
        let mut lines = vec![
            format!(
                "Activates {}. Printed by: {}",
                one_line(&self.facts.name),
                one_line(&self.command)
            ),
            "Print it again after changes of activation scripts or of the prefix.".to_owned(),
            "Unlike envfs activate, it does not change the prompt.".to_owned(),
        ];
        if !parts.unset.is_empty() {
            lines.push(format!(
                "Unloading does not restore: {}",
                parts.unset.join(" ")
            ));
        }
        if !parts.activate.is_empty() || !parts.deactivate.is_empty() {
            lines.push(
                "activate.d scripts run last, and deactivate.d scripts also run last, when the"
                    .to_owned(),
            );
            lines.push(
                "variables are restored. What an activate.d script sets stays unless a".to_owned(),
            );
            lines.push("deactivate.d script undoes it.".to_owned());
        }
        let lines = lines.iter().map(|line| format!("{comment} {line}\n"));
        lines.collect()
    }

    fn lua(&self, parts: &Parts) -> String {
        let mut out = self.head("--", parts);
        let name = lua(&self.facts.name);
        out.push_str(&format!("whatis(\"envfs environment \" .. {name})\n"));
        out.push_str("if mode() == \"load\" then\n");
        out.push_str(&format!(
            "  local done = os.execute({})\n",
            lua(&shell(&self.mount))
        ));
        out.push_str("  if done ~= 0 and done ~= true then\n");
        out.push_str(&format!(
            "    LmodError(\"cannot mount the environment \" .. {name})\n"
        ));
        out.push_str("  end\nend\n");
        for dir in parts.path.iter().rev() {
            out.push_str(&format!("prepend_path(\"PATH\", {})\n", lua(dir)));
        }
        for (name, value) in &parts.set {
            out.push_str(&format!("pushenv({}, {})\n", lua(name), lua(value)));
        }
        for name in &parts.unset {
            out.push_str(&format!("unsetenv({})\n", lua(name)));
        }
        for (mode, scripts) in [("load", &parts.activate), ("unload", &parts.deactivate)] {
            for (kind, script) in of_shells(scripts) {
                let command = lua(&source(kind, script));
                out.push_str(&format!(
                    "if myShellType() == \"{kind}\" then execute{{cmd={command}, modeA={{\"{mode}\"}}}} end\n"
                ));
            }
        }
        out
    }

    fn tcl(&self, parts: &Parts) -> String {
        let mut out = String::from("#%Module\n");
        out.push_str(&self.head("#", parts));
        out.push_str(
            "# In Lmod, and in Environment Modules before 5.1, unloading unsets variables whose\n",
        );
        out.push_str("# earlier values it cannot restore.\n");
        let name = tcl(&self.facts.name);
        out.push_str(&format!(
            "module-whatis \"envfs environment {}\"\n",
            inner(&name)
        ));
        out.push_str("if {[module-info mode load]} {\n");
        let words: Vec<String> = self.mount.iter().map(|word| tcl(word)).collect();
        out.push_str(&format!(
            "    if {{[catch {{exec {} >/dev/null}} problem options]}} {{\n",
            words.join(" ")
        ));
        // Messages alone are no failure.
        out.push_str("        puts stderr $problem\n");
        out.push_str(
            "        if {[lindex [dict get $options -errorcode] 0] ne {NONE}} { break }\n",
        );
        out.push_str("    }\n}\n");
        for dir in parts.path.iter().rev() {
            out.push_str(&format!("prepend-path PATH {}\n", tcl(dir)));
        }
        // Environment Modules before 5.1 and Tcl in Lmod cannot restore a replaced value.
        out.push_str(
            "if {[info commands pushenv] ne {} && ![info exists ::env(LMOD_VERSION)]} {\n",
        );
        out.push_str("    set assign pushenv\n} else {\n    set assign setenv\n}\n");
        for (name, value) in &parts.set {
            out.push_str(&format!("$assign {} {}\n", tcl(name), tcl(value)));
        }
        for name in &parts.unset {
            out.push_str(&format!("unsetenv {}\n", tcl(name)));
        }
        for (mode, scripts) in [("load", &parts.activate), ("remove", &parts.deactivate)] {
            for (kind, script) in of_shells(scripts) {
                let command = tcl(&format!("{};", source(kind, script)));
                out.push_str(&format!(
                    "if {{[module-info mode {mode}] && [module-info shelltype] eq {{{kind}}}}} {{ puts stdout {command} }}\n"
                ));
            }
        }
        out
    }
}

/// Returns the scripts with the types of the shells that can source them.
fn of_shells(scripts: &[String]) -> impl Iterator<Item = (&'static str, &String)> {
    scripts.iter().filter_map(|script| {
        let extension = Path::new(script).extension();
        let kind = ["sh", "fish"]
            .into_iter()
            .find(|kind| extension == Some(OsStr::new(kind)))?;
        Some((kind, script))
    })
}

/// Returns the command with which a shell sources a script, if the environment is still mounted.
fn source(kind: &str, script: &str) -> String {
    let word = quote(script);
    match kind {
        "fish" => format!("test -r {word}; and source {word}"),
        _ => format!("test ! -r {word} || . {word}"),
    }
}

/// Returns a command line for `sh` whose output does not reach the shell that evaluates modules.
fn shell(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
    format!("{} >/dev/null", words.join(" "))
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn text(path: &Path) -> Result<String, NotText> {
    let text = path.to_str().ok_or_else(|| NotText(path.to_owned()))?;
    Ok(text.to_owned())
}

/// Returns a text for a comment, which must not end its line.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// Returns a string of Lua.
fn lua(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_ascii_control() => out.push_str(&format!("\\{:03}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Returns a word of Tcl.
fn tcl(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' | '$' | '[' | ']' | '{' | '}' => out.extend(['\\', c]),
            c if c.is_ascii_control() => out.push_str(&format!("\\{:03o}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Returns what is between the quotes.
fn inner(word: &str) -> &str {
    word.trim_start_matches('"').trim_end_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_one_word_in_each_language() {
        let odd = "a \"b\" $HOME [exec x] {c} \\ 'd'\n";
        assert_eq!(lua(odd), r#""a \"b\" $HOME [exec x] {c} \\ 'd'\010""#);
        assert_eq!(tcl(odd), r#""a \"b\" \$HOME \[exec x\] \{c\} \\ 'd'\012""#);
        assert_eq!(quote("a'b"), r"'a'\''b'");
    }
}
