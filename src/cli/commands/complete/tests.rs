use super::*;

struct Sample {
    active: Option<&'static str>,
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

impl Source for Sample {
    fn names(&self) -> Vec<String> {
        strings(&["science", "web"])
    }
    fn revisions(&self, name: Option<&str>) -> Vec<String> {
        match name.or(self.active) {
            Some("web") => strings(&["2", "1"]),
            _ => Vec::new(),
        }
    }
    fn tags(&self, name: Option<&str>) -> Vec<String> {
        match name.or(self.active) {
            Some("web") => strings(&["good"]),
            _ => Vec::new(),
        }
    }
    fn changed(&self, name: Option<&str>) -> Vec<String> {
        match name.or(self.active) {
            Some("web") => strings(&["etc/a", "lib/x/1", "lib/x/2", "lib/y"]),
            _ => Vec::new(),
        }
    }
    fn operations(&self, name: Option<&str>) -> Vec<String> {
        match name.or(self.active) {
            Some("web") => strings(&["8", "7"]),
            _ => Vec::new(),
        }
    }
    fn entries(&self, name: Option<&str>, dir: &str) -> Vec<String> {
        match (name.or(self.active), dir) {
            (Some("web" | "web@1"), "") => strings(&["bin/", "lib/", "readme"]),
            (Some("web" | "web@1"), "lib/") => strings(&["x", "y/"]),
            _ => Vec::new(),
        }
    }
    fn programs(&self, name: &str) -> Vec<String> {
        strings(if name == "web" { &["node", "npm"] } else { &[] })
    }
    fn active(&self) -> Option<String> {
        self.active.map(str::to_owned)
    }
}

fn complete_in(active: Option<&'static str>, line: &str) -> Vec<String> {
    let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    candidates(words.len() - 1, &words, &Sample { active })
}

fn complete(line: &str) -> Vec<String> {
    complete_in(None, line)
}

#[test]
fn commands_options_and_names_are_completed() {
    assert_eq!(complete("envfs act"), ["activate"]);
    assert!(complete("envfs ").contains(&String::from("doctor")));
    assert!(!complete("envfs ").iter().any(|word| word.starts_with("__")));
    assert_eq!(complete("envfs status s"), ["science"]);
    assert_eq!(complete("envfs -q activate "), ["science", "web"]);
    assert_eq!(complete("envfs --color never status w"), ["web"]);
    assert!(complete("envfs commit --me").contains(&String::from("--message")));
    assert_eq!(complete("envfs --color a"), ["auto", "always"]);
    assert_eq!(complete("envfs --color=n"), ["--color=never"]);
    assert_eq!(complete("envfs image ver"), ["verify"]);
    assert!(complete("envfs hook ").contains(&String::from("fish")));
    assert!(complete("envfs completions ").contains(&String::from("zsh")));
    assert_eq!(complete("envfs activate x --shell f"), ["fish"]);
}

#[test]
fn programs_of_a_try_are_completed() {
    assert_eq!(complete("envfs try w"), ["web"]);
    assert_eq!(complete("envfs try web -- n"), ["node", "npm"]);
    assert_eq!(complete_in(Some("web"), "envfs try -- n"), ["node", "npm"]);
    assert_eq!(complete("envfs try web -- node "), ["//files"]);
    assert!(complete("envfs try --ke").contains(&String::from("--keep-on-success")));
}

#[test]
fn revisions_tags_changes_and_programs_are_completed() {
    assert_eq!(complete("envfs rollback web "), ["2", "1", "good"]);
    assert_eq!(complete("envfs export web --rev g"), ["good"]);
    assert_eq!(complete("envfs tag web "), ["good"]);
    assert_eq!(complete("envfs tag web new "), ["2", "1", "good"]);
    assert_eq!(complete("envfs discard web "), ["etc/", "lib/"]);
    assert_eq!(complete("envfs discard web lib/"), ["lib/x/", "lib/y"]);
    assert_eq!(
        complete("envfs diff web etc/a lib/x/"),
        ["lib/x/1", "lib/x/2"]
    );
    assert_eq!(complete("envfs run web n"), ["node", "npm"]);
    assert_eq!(complete("envfs run -e A=1 web -- no"), ["node"]);
    let active = |line| complete_in(Some("web"), line);
    assert_eq!(
        active("envfs rollback "),
        ["science", "web", "2", "1", "good"]
    );
    assert_eq!(active("envfs discard l"), ["lib/"]);
    assert_eq!(active("envfs diff etc/a l"), ["lib/"]);
    assert_eq!(active("envfs diff science "), [""; 0]);
}

#[test]
fn revisions_follow_a_name_and_paths_are_those_of_the_environment() {
    for command in [
        "show", "diff", "activate", "mount", "run", "shell", "verify", "du",
    ] {
        let line = format!("envfs {command} web@");
        assert_eq!(complete(&line), ["web@2", "web@1", "web@good"], "{line}");
    }
    assert_eq!(complete("envfs status web@"), [""; 0]);
    assert_eq!(
        complete("envfs diff web@1 "),
        ["2", "1", "good", "etc/", "lib/"]
    );
    assert_eq!(complete("envfs undo web --operation "), ["8", "7"]);
    assert_eq!(complete("envfs undo --operation 7 w"), ["web"]);
    assert_eq!(complete("envfs restore web "), ["bin/", "lib/", "readme"]);
    assert_eq!(complete("envfs restore web lib/"), ["lib/x", "lib/y/"]);
    assert_eq!(complete("envfs restore web lib/x --from g"), ["good"]);
    assert_eq!(complete("envfs du web l"), ["lib/"]);
    assert_eq!(complete("envfs du web 1 r"), ["readme"]);
    assert_eq!(complete("envfs cat w"), ["web:"]);
    assert_eq!(complete("envfs cat web@g"), ["web@good:"]);
    assert_eq!(complete("envfs cat web@1:li"), ["web@1:lib/"]);
    let active = |line| complete_in(Some("web"), line);
    assert_eq!(active("envfs restore re"), ["readme"]);
    assert_eq!(active("envfs cat :lib/"), [":lib/x", ":lib/y/"]);
    assert_eq!(active("envfs show @g"), ["@good"]);
}

#[test]
fn files_are_completed_only_where_a_file_is_meant() {
    for line in [
        "envfs import ",
        "envfs export web ",
        "envfs image info ",
        "envfs run web node ",
        "envfs run web node -x ",
        "envfs create new -- pyth",
    ] {
        assert_eq!(complete(line), [FILES], "{line}");
    }
    assert_eq!(complete("envfs run --cwd "), [DIRECTORIES]);
    assert_eq!(complete("envfs doctor "), ["science", "web"]);
    for line in [
        "envfs nonsense ",
        "envfs activate web ",
        "envfs deactivate ",
        "envfs create ",
        "envfs rename web ",
        "envfs import dir ",
        "envfs rollback web 1 ",
        "envfs commit -m ",
        "envfs log -n ",
        "envfs status z",
    ] {
        assert_eq!(complete(line), [""; 0], "{line}");
    }
}
