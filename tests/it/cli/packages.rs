//! Changes in terms of packages: `status`, `diff`, `commit` and `log`, with real package managers.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use crate::support::{Run, TestEnv, find, has, run, skip_allowed};

/// Makes wheels and installs from them, without a network.
const WHEEL: &str = r##"
import base64, hashlib, sys, zipfile
name, version, *files = sys.argv[1:]
def digest(data): return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
info = f"{name}-{version}.dist-info"
data = {path: f"# {path} {version}\n".encode() for path in files}
data[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
data[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
data[f"{info}/entry_points.txt"] = f"[console_scripts]\n{name}-run = {name}:main\n".encode()
record = "".join(f"{path},sha256={digest(text)},{len(text)}\n" for path, text in data.items())
data[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
with zipfile.ZipFile(f"wheels/{name}-{version}-py3-none-any.whl", "w") as wheel:
    for path, text in data.items(): wheel.writestr(path, text)
"##;

pub(super) fn wheel(env: &TestEnv, name: &str, version: &str, files: &[&str]) {
    let mut command = env.command("python3");
    command
        .args(["-c", WHEEL, name, version])
        .args(files)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    run(command).ok();
}

fn pip(env: &TestEnv, words: &str) -> Run {
    let words: Vec<&str> = words.split(' ').collect();
    let head = ["run", "v", "--", "pip", "-q", "--disable-pip-version-check"];
    env.envfs(&[&head[..], &words].concat()).ok()
}

/// Returns the lines of the output, without the spaces that align columns.
fn lines(text: &str) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().map(words).collect()
}

#[test]
fn packages_of_pip_are_shown_instead_of_their_files() {
    if !has("python3") {
        return;
    }
    for env in TestEnv::of_all_users() {
        let wheels = env.work().join("wheels");
        fs::create_dir(&wheels).unwrap();
        env.user().give(&wheels);
        wheel(&env, "alpha", "1.0", &["alpha/__init__.py", "alpha/old.py"]);
        wheel(&env, "alpha", "2.0", &["alpha/__init__.py", "alpha/new.py"]);
        wheel(&env, "beta", "1.5", &["beta.py"]);
        wheel(&env, "gamma", "0.1", &["gamma/__init__.py"]);
        wheel(&env, "delta", "4", &["delta/__init__.py", "delta/core.py"]);
        let installer = "python3 -m venv \"$1\" && \"$1/bin/pip\" install -q --no-index \
                         --disable-pip-version-check --find-links wheels alpha==1.0 gamma delta";
        let made = env
            .envfs(&[
                "create", "v", "--", "sh", "-ec", installer, "sh", "{prefix}",
            ])
            .ok();
        assert!(made.err.contains("alpha 1.0"), "{made}");
        let prefix = env.mount("v");
        pip(
            &env,
            "install --no-index --find-links wheels alpha==2.0 beta",
        );
        pip(&env, "uninstall -y gamma");
        let delta = env.sh(&format!(
            "cd '{}' && echo '# mine' >>$(find . -path '*/delta/core.py') && mkdir etc && \
             echo x >etc/conf && find . -path '*/delta/core.py'",
            prefix.display()
        ));
        let delta = delta.ok().line().trim_start_matches("./").to_owned();

        let expected = [
            "upgraded alpha 1.0 → 2.0 (python)",
            "installed beta 1.5 (python)",
            "removed gamma 0.1 (python)",
            "edited delta 4 (python): 1 file",
        ];
        let check = |env: &TestEnv| {
            let diff = env.envfs(&["diff", "v"]).ok();
            let shown = lines(&diff.out);
            assert_eq!(shown[..4], expected, "{diff}");
            assert_eq!(shown[4..], ["A etc/", "A etc/conf"], "{diff}");
            let only = env.envfs(&["diff", "--packages", "v"]).ok();
            assert_eq!(lines(&only.out), expected, "{only}");
            let below = env.envfs(&["diff", "--packages", "v", &delta]).ok();
            assert_eq!(lines(&below.out), expected[3..], "{below}");
            let status = env.envfs(&["status", "v"]).ok();
            let shown = lines(&status.out);
            for line in expected {
                assert!(shown.iter().any(|shown| shown == line), "{status}");
            }
            let rest = "and 2 files outside packages: 2 added";
            assert!(shown.iter().any(|shown| shown == rest), "{status}");
            let files = env.envfs(&["diff", "--files", "v"]).ok();
            assert!(files.out.contains(&format!("M {delta}\n")), "{files}");
            assert!(files.out.contains("bin/beta-run\n"), "{files}");
            assert!(!files.out.contains("beta 1.5"), "{files}");
            files.out
        };
        let mounted = check(&env);
        let status = env.envfs(&["status", "--files", "v"]).ok();
        assert!(!status.out.contains("beta"), "{status}");
        assert!(
            lines(&status.out)
                .iter()
                .any(|line| line.starts_with("modified "))
        );
        let json = env.envfs(&["diff", "--json", "v"]).ok().json();
        assert_eq!(json["packages"]["upgraded"][0]["from"], "1.0", "{json}");
        let changes = json["changes"].as_array().unwrap();
        let core = changes.iter().find(|one| one["path"] == delta.as_str());
        assert_eq!(core.unwrap()["owner"]["package"], "delta", "{json}");
        // Paths select files, and in JSON the packages of these.
        assert_eq!(
            env.envfs(&["diff", "v", &delta]).ok().out,
            format!("M {delta}\n")
        );
        let json = env.envfs(&["diff", "--json", "v", &delta]).ok().json();
        assert_eq!(json["packages"]["upgraded"].as_array().unwrap().len(), 0);
        assert_eq!(json["packages"]["edited"][0]["name"], "delta", "{json}");
        env.envfs(&["unmount", "v"]).ok();
        assert_eq!(check(&env), mounted);

        // The commit says the same, and the history keeps it.
        let committed = env.envfs(&["commit", "v", "-m", "new alpha"]).ok();
        let listed = [
            "upgraded alpha 1.0 → 2.0",
            "installed beta 1.5",
            "removed gamma 0.1",
            "edited delta 4: 1 file",
        ];
        assert_eq!(lines(&committed.err)[1..], listed, "{committed}");
        assert_eq!(env.envfs(&["diff", "v"]).ok().out, "");
        let log = env.envfs(&["log", "v", "-n", "1"]).ok();
        assert_eq!(lines(&log.out)[2..], listed, "{log}");
        let json = env.envfs(&["log", "v", "--json"]).ok().json();
        assert_eq!(
            json[0]["packages"]["installed"][0]["name"], "beta",
            "{json}"
        );
        let installed = json[1]["packages"]["installed"].as_array().unwrap();
        assert!(installed.iter().any(|one| one["name"] == "gamma"), "{json}");
        // A file that is as the package recorded it again is no edit.
        pip(
            &env,
            "install --no-index --find-links wheels --force-reinstall delta",
        );
        let diff = env.envfs(&["diff", "v"]).ok();
        let shown = lines(&diff.out);
        assert_eq!(
            shown[0], "edited delta 4 (python): 1 file restored",
            "{diff}"
        );
        assert!(
            shown[1..].iter().all(|line| line.starts_with("bytecode ")),
            "{diff}"
        );
    }
}

#[test]
fn packages_of_npm_are_shown_instead_of_their_files() {
    if find("npm").is_none() {
        skip_allowed("no npm");
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    for version in ["1.0.0", "1.1.0"] {
        let dir = env.work().join(format!("left-{version}"));
        let json =
            format!(r#"{{"name": "left", "version": "{version}", "bin": {{"left": "run.js"}}}}"#);
        env.write(&dir.join("package.json"), json);
        env.write(&dir.join("run.js"), "#!/usr/bin/env node\n");
        let mut pack = env.command("npm");
        pack.args(["pack", "--silent"]).arg(&dir);
        run(pack).ok();
    }
    let install =
        "npm install --silent --offline --no-audit --no-fund --prefix {prefix} ./left-1.0.0.tgz";
    let words: Vec<&str> = ["create", "n", "--"]
        .into_iter()
        .chain(install.split(' '))
        .collect();
    let made = env.envfs(&words).ok();
    assert!(made.err.contains("left 1.0.0"), "{made}");
    let prefix = env.mount("n");
    let mut again = env.command("npm");
    again
        .args([
            "install",
            "--silent",
            "--offline",
            "--no-audit",
            "--no-fund",
            "--prefix",
        ])
        .arg(&prefix)
        .arg("./left-1.1.0.tgz");
    run(again).ok();
    let diff = env.envfs(&["diff", "n"]).ok();
    let shown = lines(&diff.out);
    assert_eq!(shown[0], "upgraded left 1.0.0 → 1.1.0 (node)", "{diff}");
    let files = [
        "M node_modules/.package-lock.json",
        "M package-lock.json",
        "M package.json",
    ];
    assert_eq!(shown[1..], files, "{diff}");
}

/// A conda prefix as far as envfs reads it.
fn conda(env: &TestEnv, root: &Path, packages: usize) {
    let script = r#"
import hashlib, json, os, sys
root, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    name = f"pkg{number}"
    paths = []
    for file in range(4):
        path = f"share/{name}/f{file}"
        data = f"{name} {file}\n".encode()
        os.makedirs(os.path.dirname(f"{root}/{path}"), exist_ok=True)
        open(f"{root}/{path}", "wb").write(data)
        paths.append({"_path": path, "path_type": "hardlink", "size_in_bytes": len(data),
                      "sha256": hashlib.sha256(data).hexdigest(), "sha256_in_prefix": hashlib.sha256(data).hexdigest()})
    os.makedirs(f"{root}/conda-meta", exist_ok=True)
    record = {"name": name, "version": "1.0", "build": "h0_0", "files": [path["_path"] for path in paths],
              "paths_data": {"paths": paths, "paths_version": 1}}
    json.dump(record, open(f"{root}/conda-meta/{name}-1.0-h0_0.json", "w"))
"#;
    let mut command = env.command("python3");
    command
        .args(["-c", script])
        .arg(root)
        .arg(packages.to_string());
    run(command).ok();
}

#[test]
fn an_edited_file_of_conda_is_found_by_its_hash() {
    if !has("python3") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("tree");
    conda(&env, &source, 60);
    env.envfs(&["import", "-q", source.to_str().unwrap(), "c"])
        .ok();
    let prefix = env.mount("c");
    fs::write(prefix.join("share/pkg7/f1"), "mine").unwrap();
    fs::remove_file(prefix.join("share/pkg7/f2")).unwrap();
    fs::rename(
        prefix.join("conda-meta/pkg9-1.0-h0_0.json"),
        prefix.join("conda-meta/pkg9-1.1-h1_0.json"),
    )
    .unwrap();
    let diff = env.envfs(&["diff", "c"]).ok();
    assert_eq!(
        lines(&diff.out),
        [
            "upgraded pkg9 1.0 → 1.1 (conda)",
            "edited pkg7 1.0 (conda): 1 file, 1 file removed"
        ],
        "{diff}"
    );
}

#[test]
fn a_path_that_does_not_exist_is_an_error() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    fs::remove_file(prefix.join("lib/c.txt")).unwrap();
    for words in [
        &["diff", "e"][..],
        &["discard", "-y", "e"],
        &["diff", "--json", "e"],
    ] {
        let words = [words, &["no\x1bsuch"]].concat();
        let told = env
            .envfs(&words)
            .fails(3, &["no such path in the environment"]);
        assert!(!told.err.contains('\x1b'), "{told}");
    }
    // Removed ones existed.
    assert_eq!(
        env.envfs(&["diff", "e", "lib/c.txt"]).ok().out,
        "D lib/c.txt\n"
    );
    env.envfs(&["unmount", "e"]).ok();
    env.envfs(&["diff", "e", "nosuch"])
        .fails(3, &["'nosuch': no such path in the environment"]);
}
