//! What `envfs doctor` says about other tools.

use std::path::Path;

use serde_json::Value;

use crate::support::{Run, TestEnv, run};

/// Makes an environment of conda with Python and ipykernel, and one that is neither.
fn environments(env: &TestEnv) {
    let source = env.work().join("conda");
    for file in [
        "conda-meta/history",
        "bin/python",
        "lib/python3.11/site-packages/ipykernel/__init__.py",
    ] {
        env.write(&source.join(file), "");
    }
    env.envfs(&["import", "-q", "conda", "sci"]).ok();
    env.import_sample("plain");
}

/// Runs `envfs doctor` without a conda of this system.
fn doctor(env: &TestEnv, words: &[&str], variables: &[(&str, &Path)]) -> Run {
    let mut command = env.envfs_command(&[&["doctor"], words].concat());
    command.env("PATH", "/usr/bin:/bin").env_remove("CONDA_EXE");
    for (name, value) in variables {
        command.env(name, value);
    }
    run(command)
}

/// Returns a finding about a tool.
fn about(findings: &Value, check: &str) -> Option<(String, String)> {
    let all = findings.as_array().unwrap();
    let found = all.iter().find(|one| one["check"] == check)?;
    let hints = found["hints"].as_array().unwrap().iter();
    let hints: Vec<&str> = hints.map(|hint| hint.as_str().unwrap()).collect();
    let message = found["message"].as_str().unwrap().to_owned();
    Some((message, hints.join("\n")))
}

#[test]
fn doctor_says_how_conda_finds_an_environment() {
    for env in TestEnv::of_all_users() {
        environments(&env);
        let home = env.root().join("home");
        let prefixes = env.prefix("sci").parent().unwrap().to_owned();
        let of = |variables: &[(&str, &Path)]| {
            let found = doctor(&env, &["--json", "sci"], variables).ok().json();
            about(&found["tools"], "conda")
        };
        let all = || about(&doctor(&env, &["--json"], &[]).json(), "conda");
        assert_eq!((of(&[]), all()), (None, None), "without conda");

        env.write(&home.join(".conda/environments.txt"), "");
        let append = format!("conda config --append envs_dirs {}", prefixes.display());
        let (message, hints) = of(&[]).unwrap();
        assert!(message.contains("does not list it"), "{message}");
        assert!(hints.contains(&append), "{hints}");
        assert!(hints.contains("envfs mount adds it"), "{hints}");
        let (message, hints) = all().unwrap();
        assert!(
            message.ends_with("is not one of its envs_dirs"),
            "{message}"
        );
        assert!(hints.contains(&append), "{hints}");

        env.mount("sci");
        let (message, hints) = of(&[]).unwrap();
        assert!(message.contains("finds it by path only"), "{message}");
        assert!(hints.contains(&append), "{hints}");

        let (message, _) = of(&[("CONDA_ENVS_DIRS", &prefixes)]).unwrap();
        assert_eq!(message, "finds it by name: conda activate sci");
        let setting = format!("envs_dirs:\n  - {}\n", prefixes.display());
        env.write(&home.join(".condarc"), setting);
        assert_eq!(of(&[]).unwrap().0, message);
        assert!(all().unwrap().0.contains("by name"));
        let plain = doctor(&env, &["--json", "plain"], &[]).ok().json();
        assert_eq!(plain["tools"], serde_json::json!([]), "not of conda");
    }
}

#[test]
fn doctor_says_whether_jupyter_and_editors_find_an_environment() {
    for env in TestEnv::of_all_users() {
        environments(&env);
        let of = |check: &str, variables: &[(&str, &Path)]| {
            let found = doctor(&env, &["--json", "sci"], variables).ok().json();
            about(&found["tools"], check).unwrap()
        };
        let python = env.prefix("sci").join("bin/python");
        let (message, hints) = of("interpreter", &[]);
        assert!(message.ends_with(python.to_str().unwrap()), "{message}");
        assert!(hints.contains("envfs mount sci"), "{hints}");
        env.mount("sci");
        assert_eq!(of("interpreter", &[]), (message, String::new()));

        let data = env.work().join("jupyter");
        let here = [("JUPYTER_DATA_DIR", data.as_path())];
        let (message, hints) = of("Jupyter", &here);
        assert!(
            message.contains("no kernel of this environment is registered"),
            "{message}"
        );
        let file = data.join("kernels/sci/kernel.json");
        let mut hints = hints.lines();
        assert!(hints.next().unwrap().contains(file.to_str().unwrap()));
        // What it says to write is what it looks for.
        let spec = hints.next().unwrap();
        assert!(
            hints
                .next()
                .unwrap()
                .contains("ipykernel install --user --name sci")
        );
        env.write(&file, spec);
        let (message, _) = of("Jupyter", &here);
        assert_eq!(message, "its kernel sci starts with envfs run");
        let argv = serde_json::from_str::<Value>(spec).unwrap()["argv"].clone();
        let argv: Vec<&str> = argv
            .as_array()
            .unwrap()
            .iter()
            .flat_map(Value::as_str)
            .collect();
        let words = [&["run", "sci", "--", "true"], &argv[5..]].concat();
        assert_eq!(argv[..5], ["envfs", "run", "sci", "--", "python"]);
        env.envfs(&words).ok();

        env.write(
            &file,
            format!(r#"{{"argv": ["{}", "-m", "x"]}}"#, python.display()),
        );
        let (message, _) = of("Jupyter", &here);
        assert_eq!(message, "its kernel sci starts while it is mounted");
        for other in [
            "",
            "[]",
            r#"{"argv": []}"#,
            r#"{"argv": ["envfs", "run", "other"]}"#,
        ] {
            env.write(&file, other);
            assert!(of("Jupyter", &here).0.contains("no kernel"), "{other}");
        }
        let jupyter = env.prefix("sci").join("bin/jupyter");
        env.sh(&format!(": >'{}'", jupyter.display())).ok();
        assert!(of("Jupyter", &here).0.contains("envfs run sci jupyter lab"));
    }
}

#[test]
fn a_prefix_without_the_symbolic_links_on_its_path_is_no_other_one() {
    for env in TestEnv::of_all_users() {
        let real = env.work().join("real/v");
        for (name, own) in [("own", &real), ("other", &env.work().join("other"))] {
            let file = real.join("bin").join(name);
            env.write(&file, format!("#!{}/bin/python\n", own.display()));
        }
        let home = format!(
            "home = /usr/bin\ncommand = python -m venv {}\n",
            real.display()
        );
        env.write(&real.join("pyvenv.cfg"), home);
        env.sh("ln -s real link; envfs import -q --in-place link/v v")
            .ok();
        let shown = doctor(&env, &["v"], &[]).ok().out;
        assert!(shown.contains("bin/other"), "{shown}");
        assert!(
            !shown.contains("bin/own") && !shown.contains("real/v"),
            "{shown}"
        );
        env.envfs(&["unmount", "v"]).ok();
    }
}
