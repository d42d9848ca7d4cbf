//! Computes the changes to make in a shell. Nothing here accesses the system.
//!
//! The state of an active environment is kept in exported variables of the shell, so that subshells
//! inherit it, and so that deactivation needs neither the mount nor the store:
//!
//! ```text
//! ENVFS_ENV, ENVFS_PREFIX, ENVFS_REV, ENVFS_PROMPT_MODIFIER    the active environment
//! ENVFS_SHLVL                                                  the number of stacked environments
//! __ENVFS_STATE_n                                              JSON: the values that the n-th replaced
//! ```
//!
//! A variable is restored only if it still has the value that activation set: later changes by the
//! user are kept. `conda` has the rules for conda's variables, which conda also changes.

mod conda;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::conda::Position;
use super::facts::{PrefixFacts, is_variable_name};
use crate::sys::text::Text;

/// Variables by name.
pub type Variables = BTreeMap<OsString, OsString>;

const STATE: &str = "__ENVFS_STATE_";
const LEVEL: &str = "ENVFS_SHLVL";
/// The search path for programs if `PATH` is unset.
pub const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";
/// The highest level that is accepted: the number comes from a variable that anything may have set.
const MAX_LEVEL: u32 = 64;

/// The changes to make in a shell, in the order of the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Script {
    /// Scripts to source before any change.
    pub before: Vec<PathBuf>,
    /// Variables to unset.
    pub unset: Vec<OsString>,
    /// Variables to set and export.
    pub export: Vec<(OsString, OsString)>,
    /// The new prompt; set, never exported.
    pub prompt: Option<OsString>,
    /// Scripts to source after all changes.
    pub after: Vec<PathBuf>,
}

/// Whether activation replaces the active environment or is stacked on top of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nesting {
    /// Replaces the active environment.
    #[default]
    Replace,
    /// Keeps the active environment below; deactivation returns to it.
    Stack,
}

/// The record of an activation that is needed to undo it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// Name of the environment.
    name: String,
    /// Its prefix.
    prefix: Text,
    /// Its revision when it was activated.
    revision: Option<i64>,
    /// The variables that were changed, with their values before and after.
    variables: BTreeMap<String, (Option<Text>, Option<Text>)>,
    /// The entries that were added to `PATH`, in order.
    path: Vec<Text>,
    /// The entries of `PATH` that they replaced.
    replaced: Vec<Text>,
    /// `PATH` before.
    path_before: Option<Text>,
    /// `PATH` after.
    path_after: Text,
    /// The text that was put before the prompt.
    prompt: String,
    /// The text in the prompt that it replaced.
    prompt_before: String,
    /// The whole prompt before and after, if it was changed.
    #[serde(default)]
    whole_prompt: Option<(Text, Text)>,
    /// The value of `CONDA_SHLVL` that activation set, if it is a conda environment.
    #[serde(default)]
    conda_level: Option<u32>,
    /// The numbered variables of conda that existed before.
    #[serde(default)]
    conda_names: Vec<String>,
    /// Scripts to source first when the activation is undone.
    deactivate: Vec<Text>,
    /// Scripts to source last when the activation is undone: those of the conda environment that it
    /// replaced.
    reactivate: Option<Vec<Text>>,
}

/// The settings of an activation.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Whether to replace the active environment or stack on top of it.
    pub nesting: Nesting,
    /// A template for the text before the prompt, with `{name}`; `None` leaves the prompt alone.
    pub prompt: Option<String>,
    /// The conda environment that is active but was not activated by envfs. Its scripts are sourced
    /// when it is replaced and when it returns.
    pub conda_below: Option<PrefixFacts>,
}

impl Settings {
    /// Returns settings with the default prompt.
    pub fn with_default_prompt() -> Settings {
        Settings {
            prompt: Some(String::from("({name}) ")),
            ..Settings::default()
        }
    }
}

/// Returns the name of the active environment.
pub fn active(variables: &Variables) -> Option<&OsStr> {
    get(variables, "ENVFS_ENV").filter(|name| !name.is_empty())
}

fn get<'a>(variables: &'a Variables, name: &str) -> Option<&'a OsStr> {
    variables.get(OsStr::new(name)).map(OsString::as_os_str)
}

fn level(variables: &Variables) -> u32 {
    get(variables, LEVEL)
        .and_then(OsStr::to_str)
        .and_then(|text| text.parse().ok())
        .filter(|&level| level <= MAX_LEVEL)
        .unwrap_or(0)
}

fn state(variables: &Variables, level: u32) -> Option<State> {
    serde_json::from_slice(get(variables, &format!("{STATE}{level}"))?.as_bytes()).ok()
}

/// The state of planning: the variables so far, and the scripts to source.
struct Planner {
    variables: Variables,
    before: Vec<PathBuf>,
    after: Vec<PathBuf>,
    /// Scripts of the conda environment that returns, unless another replaces it again.
    returning: Option<Vec<PathBuf>>,
}

/// Returns the prefix of the conda environment, not activated by envfs, that is active or returns
/// when ours is deactivated. [`activate`] needs its scripts.
pub fn conda_below(variables: &Variables) -> Option<PathBuf> {
    let mut planner = Planner::new(variables);
    let current = level(variables);
    if current > 0 {
        planner.pop(current);
    }
    planner
        .get("CONDA_PREFIX")
        .map(PathBuf::from)
        .filter(|prefix| prefix.is_absolute())
}

/// Plans an activation. If the environment is active already, it is reactivated. Another active one
/// is deactivated first, unless the activation is stacked.
pub fn activate(facts: &PrefixFacts, variables: &Variables, settings: &Settings) -> Script {
    let mut planner = Planner::new(variables);
    let current = level(variables);
    let top = state(variables, current);
    let same = top
        .as_ref()
        .is_some_and(|state| state.prefix.as_path() == facts.prefix);
    let mut place = None;
    if current > 0 && (same || settings.nesting == Nesting::Replace) {
        place = planner.pop(current);
        if same {
            // A login shell or tmux may have put other entries before ours in PATH: move to the
            // front.
            place = None;
        }
    }
    // `pop` has deactivated a conda environment of ours; any other one is below.
    planner.push(facts, settings, place);
    planner.finish(variables)
}

/// Plans how to undo the last activation. Nothing changes if no environment is active.
pub fn deactivate(variables: &Variables) -> Script {
    let mut planner = Planner::new(variables);
    let current = level(variables);
    if current > 0 {
        planner.pop(current);
    } else {
        // Remains of a broken state.
        planner.forget_names();
    }
    planner.finish(variables)
}

impl Planner {
    fn new(variables: &Variables) -> Planner {
        Planner {
            variables: variables.clone(),
            before: Vec::new(),
            after: Vec::new(),
            returning: None,
        }
    }

    fn set(&mut self, name: &str, value: Option<OsString>) {
        match value {
            Some(value) => {
                self.variables.insert(OsString::from(name), value);
            }
            None => {
                self.variables.remove(OsStr::new(name));
            }
        }
    }

    fn get(&self, name: &str) -> Option<&OsStr> {
        get(&self.variables, name)
    }

    /// Undoes the activation at this level. Returns its position in `PATH`.
    fn pop(&mut self, level: u32) -> Option<usize> {
        let key = format!("{STATE}{level}");
        let state = state(&self.variables, level);
        self.set(&key, None);
        let mut place = None;
        if let Some(state) = &state {
            let position = self.position(state);
            if position.is_running() {
                self.before
                    .extend(state.deactivate.iter().map(|path| PathBuf::from(&path.0)));
                self.returning = state
                    .reactivate
                    .as_ref()
                    .map(|scripts| scripts.iter().map(|path| PathBuf::from(&path.0)).collect());
            }
            self.restore_prompt(state, position);
            self.restore_variables(state, position);
            place = self.restore_path(state);
        }
        self.forget_names();
        let below = level.saturating_sub(1);
        if below > 0 {
            self.set(LEVEL, Some(below.to_string().into()));
            self.name_level(below);
        }
        place
    }

    fn forget_names(&mut self) {
        for name in [
            "ENVFS_ENV",
            "ENVFS_PREFIX",
            "ENVFS_REV",
            "ENVFS_PROMPT_MODIFIER",
            LEVEL,
        ] {
            self.set(name, None);
        }
    }

    /// Sets the variables that name the active environment to that of a level.
    fn name_level(&mut self, level: u32) {
        let Some(state) = state(&self.variables, level) else {
            return;
        };
        self.set("ENVFS_ENV", Some(OsString::from(&state.name)));
        self.set("ENVFS_PREFIX", Some(state.prefix.0));
        self.set(
            "ENVFS_REV",
            state.revision.map(|revision| revision.to_string().into()),
        );
        self.set(
            "ENVFS_PROMPT_MODIFIER",
            (!state.prompt.is_empty()).then(|| OsString::from(state.prompt)),
        );
    }

    fn restore_path(&mut self, state: &State) -> Option<usize> {
        let now = self.get("PATH").map(OsStr::to_owned);
        let mut entries = split_path(now.as_deref());
        let first = entries
            .iter()
            .position(|entry| state.path.iter().any(|ours| ours.0 == *entry));
        if now.as_deref() == Some(state.path_after.0.as_os_str()) {
            self.set("PATH", state.path_before.clone().map(|text| text.0));
            return first;
        }
        // PATH was changed since: remove our entries. Those that they replaced return only if conda
        // has not put another environment in our place.
        if let Some(first) = first {
            let bin = state.prefix.as_path().join("bin");
            let is_in_place = entries.iter().any(|entry| Path::new(entry) == bin);
            entries.retain(|entry| !state.path.iter().any(|ours| ours.0 == *entry));
            if is_in_place {
                let at = first.min(entries.len());
                entries.splice(at..at, state.replaced.iter().map(|text| text.0.clone()));
            }
            self.set("PATH", Some(join_path(&entries)));
        }
        first
    }

    fn restore_prompt(&mut self, state: &State, position: Position) {
        let Some(prompt) = self.get("PS1").map(OsStr::to_owned) else {
            return;
        };
        if let Some((before, after)) = &state.whole_prompt
            && after.0 == prompt
        {
            self.set("PS1", Some(before.0.clone()));
            return;
        }
        let modifier = self.get("CONDA_PROMPT_MODIFIER").unwrap_or_default();
        let ours = OsStr::new(&state.prompt);
        // Conda replaces our text with its own, and writes its own when it returns to us.
        let texts = match position {
            Position::NotConda => vec![ours],
            Position::Top => vec![modifier, ours],
            Position::Covered { .. } | Position::Gone if modifier == ours => vec![],
            Position::Covered { .. } | Position::Gone => vec![ours],
        };
        let with = match position {
            Position::NotConda | Position::Top => state.prompt_before.as_str(),
            Position::Covered { .. } | Position::Gone => "",
        };
        let replaced = texts
            .into_iter()
            .find_map(|text| replace_first(&prompt, text, OsStr::new(with)));
        if let Some(replaced) = replaced {
            self.set("PS1", Some(replaced));
        }
    }

    /// Activates an environment on top of the current state; `place` is the position in `PATH` of
    /// the environment that it replaces.
    fn push(&mut self, facts: &PrefixFacts, settings: &Settings, place: Option<usize>) {
        let level = level(&self.variables) + 1;
        let mut state = State {
            name: facts.name.clone(),
            revision: facts.revision,
            prefix: Text::from(facts.prefix.as_path()),
            path: facts
                .path
                .iter()
                .map(|path| Text::from(path.as_path()))
                .collect(),
            deactivate: facts
                .deactivate_scripts
                .iter()
                .map(|p| Text::from(p.as_path()))
                .collect(),
            ..State::default()
        };
        let mut assignments: Vec<(String, Option<OsString>)> = Vec::new();
        let mut assign = |name: &str, value: Option<OsString>| {
            assignments.retain(|(known, _)| known != name);
            assignments.push((name.to_owned(), value));
        };
        for (name, value) in &facts.variables {
            if let Some(name) = name.to_str()
                && is_variable_name(name)
            {
                assign(name, value.clone());
            }
        }
        if facts.is_conda {
            state.conda_names = self.conda_names();
            let level = self.conda_level() + 1;
            state.conda_level = Some(level);
            for (name, value) in self.conda(facts, settings, level) {
                assign(&name, Some(value));
            }
        }
        if let Some(prompt) = &facts.venv_prompt {
            assign("VIRTUAL_ENV", Some(facts.prefix.clone().into_os_string()));
            assign("VIRTUAL_ENV_PROMPT", Some(OsString::from(prompt)));
            assign("PYTHONHOME", None);
        }
        // Package caches are outside of the mount, so nothing in them can be hard-linked. uv warns
        // of each attempt; npm, pnpm and conda copy without being told.
        if self.get("UV_LINK_MODE").is_none() {
            assign("UV_LINK_MODE", Some(OsString::from("copy")));
        }
        if facts.is_node {
            for name in ["NPM_CONFIG_PREFIX", "npm_config_prefix"] {
                // npm accepts both spellings; only one that is set already can contradict.
                if name == "NPM_CONFIG_PREFIX" || self.get(name).is_some() {
                    assign(name, Some(facts.prefix.clone().into_os_string()));
                }
            }
        }
        let replaces_conda = facts.is_conda && settings.nesting == Nesting::Replace;
        let below = settings.conda_below.as_ref().filter(|below| {
            replaces_conda
                && self.get("CONDA_PREFIX") == Some(below.prefix.as_os_str())
                && below.prefix != facts.prefix
        });
        match (below, self.returning.take()) {
            // It was replaced before, and still is.
            (Some(_), Some(scripts)) => state.reactivate = Some(texts(&scripts)),
            (Some(below), None) => {
                self.before.extend(below.deactivate_scripts.iter().cloned());
                state.reactivate = Some(texts(&below.activate_scripts));
            }
            (None, returning) => self.returning = returning,
        }
        let conda_prefix = below.map(|below| below.prefix.clone());

        self.push_path(&mut state, conda_prefix.as_deref(), place);
        self.push_prompt(&mut state, facts, settings);
        for (name, value) in assignments {
            let before = self.get(&name).map(Text::from);
            state
                .variables
                .insert(name.clone(), (before, value.clone().map(Text::from)));
            self.set(&name, value);
        }
        self.after
            .extend(self.returning.take().into_iter().flatten());
        self.after.extend(facts.activate_scripts.iter().cloned());

        self.set("ENVFS_ENV", Some(OsString::from(&facts.name)));
        self.set("ENVFS_PREFIX", Some(facts.prefix.clone().into_os_string()));
        self.set(
            "ENVFS_REV",
            facts.revision.map(|revision| revision.to_string().into()),
        );
        self.set("ENVFS_PROMPT_MODIFIER", {
            (!state.prompt.is_empty()).then(|| OsString::from(&state.prompt))
        });
        self.set(LEVEL, Some(level.to_string().into()));
        // This cannot fail, as there are only strings and arrays of bytes. If it did, deactivation
        // would leave the variables alone.
        if let Ok(text) = serde_json::to_string(&state) {
            self.set(&format!("{STATE}{level}"), Some(OsString::from(text)));
        }
    }

    fn push_path(&mut self, state: &mut State, conda_below: Option<&Path>, place: Option<usize>) {
        let before = self.get("PATH").map(OsStr::to_owned);
        let mut entries = split_path(before.as_deref());
        entries.retain(|entry| !state.path.iter().any(|ours| ours.0 == *entry));
        let mut at = place.unwrap_or(0).min(entries.len());
        // As in conda, our entries replace those of the environment that was active.
        if let Some(prefix) = conda_below {
            let bin = prefix.join("bin").into_os_string();
            if let Some(found) = entries.iter().position(|entry| *entry == bin) {
                entries.retain(|entry| *entry != bin);
                state.replaced.push(Text(bin));
                at = found.min(entries.len());
            }
        }
        // A shell without PATH finds the system's programs, and must still do so.
        if entries.is_empty() {
            entries = split_path(Some(OsStr::new(SYSTEM_PATH)));
        }
        let ours: Vec<OsString> = state.path.iter().map(|text| text.0.clone()).collect();
        entries.splice(at..at, ours);
        let after = join_path(&entries);
        state.path_before = before.map(Text::from);
        state.path_after = Text::from(after.clone());
        self.set("PATH", Some(after));
    }

    fn push_prompt(&mut self, state: &mut State, facts: &PrefixFacts, settings: &Settings) {
        let Some(form) = &settings.prompt else { return };
        state.prompt = form.replace("{name}", &facts.name);
        let Some(prompt) = self.get("PS1").filter(|prompt| !prompt.is_empty()) else {
            return;
        };
        // A powerline computes the prompt itself.
        let is_powerline = prompt
            .as_bytes()
            .windows(17)
            .any(|window| window == b"POWERLINE_COMMAND");
        if is_powerline {
            return;
        }
        let before = prompt.to_owned();
        // As conda does, replace the text of the conda environment that was active.
        let modifier = self.get("CONDA_PROMPT_MODIFIER").and_then(OsStr::to_str);
        let rest = match modifier {
            Some(modifier) if facts.is_conda => {
                let rest = replace_first(&before, OsStr::new(modifier), OsStr::new(""));
                if rest.is_some() {
                    state.prompt_before = modifier.to_owned();
                }
                rest
            }
            _ => None,
        };
        let mut text = OsString::from(&state.prompt);
        text.push(rest.as_ref().unwrap_or(&before));
        state.whole_prompt = Some((Text::from(before), Text::from(text.clone())));
        self.set("PS1", Some(text));
    }

    /// Returns the changes since `before`.
    fn finish(mut self, before: &Variables) -> Script {
        self.after
            .extend(self.returning.take().into_iter().flatten());
        let prompt_name = OsStr::new("PS1");
        let prompt = self.variables.remove(prompt_name);
        let prompt = prompt.filter(|value| before.get(prompt_name) != Some(value));
        Script {
            before: self.before,
            unset: before
                .keys()
                .filter(|name| *name != prompt_name && !self.variables.contains_key(*name))
                .cloned()
                .collect(),
            export: self
                .variables
                .into_iter()
                .filter(|(name, value)| before.get(name) != Some(value))
                .collect(),
            prompt,
            after: self.after,
        }
    }
}

fn texts(paths: &[PathBuf]) -> Vec<Text> {
    paths
        .iter()
        .map(|path| Text::from(path.as_path()))
        .collect()
}

/// Replaces the first occurrence of a text; none if there is none.
fn replace_first(whole: &OsStr, text: &OsStr, with: &OsStr) -> Option<OsString> {
    let (whole, text) = (whole.as_bytes(), text.as_bytes());
    if text.is_empty() {
        return None;
    }
    let at = whole
        .windows(text.len())
        .position(|window| window == text)?;
    let (before, rest) = whole.split_at(at);
    let after = rest.get(text.len()..).unwrap_or_default();
    Some(OsString::from_vec(
        [before, with.as_bytes(), after].concat(),
    ))
}

/// Splits a search path. Keeps empty entries, which stand for the working directory.
fn split_path(path: Option<&OsStr>) -> Vec<OsString> {
    match path {
        None => Vec::new(),
        Some(path) if path.is_empty() => Vec::new(),
        Some(path) => path
            .as_bytes()
            .split(|&byte| byte == b':')
            .map(|entry| OsString::from_vec(entry.to_vec()))
            .collect(),
    }
}

fn join_path(entries: &[OsString]) -> OsString {
    entries.join(OsStr::new(":"))
}

impl Script {
    /// Returns whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Script::default()
    }

    /// Applies the changes to a set of variables. Does not source the scripts.
    pub fn apply(&self, variables: &mut Variables) {
        for name in &self.unset {
            variables.remove(name);
        }
        for (name, value) in &self.export {
            variables.insert(name.clone(), value.clone());
        }
        if let Some(prompt) = &self.prompt {
            variables.insert(OsString::from("PS1"), prompt.clone());
        }
    }
}
