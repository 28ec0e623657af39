//! Words that a shell would make something of: in a command, a variable, a path or a service, from the library, the command
//! line, an image or a file. No shell runs but those that are asked for, so they arrive as they are.
//!
//! A shell anywhere, inside or outside, would leave a mark in a directory that has one name in both. Of the attribute it is
//! shown in `orbit-harness/tests/words.rs`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use orbit::{Mount, Sandbox};
use orbit_tests::{Case, Context, Program, Who, images};

use super::{case, layouts::Layout, rootfs};
use crate::{
    kit::{VIEWS, describe},
    told::{self, Told, package},
};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("words_of_a_builder_are_words", words_of_a_builder),
        case("words_of_an_image_are_words", words_of_an_image),
        case("words_of_a_command_line_are_words", words_of_a_command_line),
        case("words_of_a_file_are_words", words_of_a_file)
            .who(Who::RANGED)
            .needs_toolchain()
            .deadline(Duration::from_secs(300)),
        case("paths_are_no_options", paths_are_no_options),
    ]
}

/// What is tried, and where it would leave its marks.
struct Tried {
    marks: PathBuf,
    words: Vec<String>,
}

impl Tried {
    fn new(context: &Context) -> Result<Self> {
        let marks = context.work().join("marks");
        fs::create_dir(&marks)?;
        let mark = |number: u32| format!("touch {}/{number}", marks.display());
        let words = vec![
            format!("$({})", mark(1)),
            format!("`{}`", mark(2)),
            format!("; {};", mark(3)),
            format!("| {} |", mark(4)),
            format!("&& {} #", mark(5)),
            format!("\n{}\n", mark(6)),
            format!("' ; {} ; '", mark(7)),
            format!("\" ; {} ; \"", mark(8)),
            format!("> {}/9", marks.display()),
            "$HOME ${PATH} ~ * ? [a-z] {a,b} !! %s %n \\".to_owned(),
            "=a=b: \t\u{1b}[31mé".to_owned(),
            "-c".to_owned(),
            String::new(),
        ];
        let tried = Self { marks, words };
        // That a shell would leave them.
        Program::new("sh")
            .args(["-c", &format!("echo {}", tried.words[0])])
            .run()?
            .success()?;
        ensure!(tried.marked()? == ["1"], "{:?}", tried.marked()?);
        fs::remove_file(tried.marks.join("1"))?;
        Ok(tried)
    }

    fn marked(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.marks)?;
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    /// That a program printed these words, each with a NUL behind it, and that no shell ran.
    fn check(&self, printed: &str) -> Result<()> {
        let expected = self.words.join("\0") + "\0";
        ensure!(printed == expected, "{printed:?}, not {expected:?}");
        self.check_unmarked()
    }

    fn check_unmarked(&self) -> Result<()> {
        let marked = self.marked()?;
        ensure!(marked.is_empty(), "a shell ran: {marked:?}");
        Ok(())
    }

    /// The same of `/proc/self/environ`.
    fn check_variables(&self, printed: &str) -> Result<()> {
        let found: BTreeMap<&str, &str> = printed
            .split('\0')
            .filter_map(|variable| variable.split_once('='))
            .collect();
        for (name, word) in self.variables() {
            let value = found.get(&*name);
            ensure!(value == Some(&word), "{name}: {value:?}, not {word:?}");
        }
        self.check_unmarked()
    }

    fn variables(&self) -> impl Iterator<Item = (String, &str)> {
        let words = self.words.iter().enumerate();
        words.map(|(number, word)| (format!("WORD_{number}"), word.as_str()))
    }

    fn mount(&self) -> Mount {
        Mount::bind(&self.marks, &self.marks)
    }

    /// `printf`, and what it is to print.
    fn printing(&self) -> Vec<&str> {
        let words = self.words.iter().map(String::as_str);
        ["printf", "%s\\0"].into_iter().chain(words).collect()
    }
}

const ENVIRONMENT: [&str; 2] = ["cat", "/proc/self/environ"];

fn words_of_a_builder(context: &Context) -> Result<()> {
    let tried = Tried::new(context)?;
    for view in VIEWS {
        let sandbox = || -> Result<_> {
            let sandbox = view.sandbox()?.mount(tried.mount());
            Ok(tried
                .variables()
                .fold(sandbox, |it, (name, word)| it.env(name, word)))
        };
        let outcome = sandbox()?.cmd(tried.printing()).run()?;
        tried
            .check(&outcome.stdout_text())
            .with_context(|| describe(&outcome))?;
        let outcome = sandbox()?.cmd(ENVIRONMENT).run()?;
        tried.check_variables(&outcome.stdout_text())?;
        let idle = sandbox()?.cmd(["sleep", "1000"]).start()?;
        let outcome = idle.exec(tried.printing()).run()?;
        tried.check(&outcome.stdout_text())?;
        let outcome = idle.exec(ENVIRONMENT).run()?;
        tried.check_variables(&outcome.stdout_text())?;
        // Nor is a text a command.
        for word in &tried.words {
            ensure!(sandbox()?.cmd([word]).run().is_err(), "{word:?} was run");
        }
        tried.check_unmarked()?;
    }
    Ok(())
}

fn words_of_an_image(context: &Context) -> Result<()> {
    let tried = Tried::new(context)?;
    let mut layout = Layout::of_busybox(context, "image")?;
    let (first, rest) = tried.words.split_at(4);
    let entrypoint: Vec<&str> = tried.printing()[..6].to_vec();
    let place = format!("/tmp/{}", tried.words[1].replace('/', " "));
    let config = &mut layout.config["config"];
    config["Entrypoint"] = entrypoint.into();
    config["Cmd"] = rest.into();
    config["WorkingDir"] = place.as_str().into();
    config["Labels"] = serde_json::json!({ &first[0]: &first[1] });
    let mut variables: Vec<String> = vec!["PATH=/bin:/usr/bin".to_owned()];
    variables.extend(
        tried
            .variables()
            .map(|(name, word)| format!("{name}={word}")),
    );
    config["Env"] = variables.into();
    let image = layout.write()?;
    let sandbox = || Sandbox::builder().image(&image).mount(tried.mount());
    let outcome = sandbox().run()?;
    tried
        .check(&outcome.stdout_text())
        .with_context(|| describe(&outcome))?;
    let outcome = sandbox().entrypoint(ENVIRONMENT).cmd([""; 0]).run()?;
    tried.check_variables(&outcome.stdout_text())?;
    let outcome = sandbox().entrypoint(["pwd"]).cmd([""; 0]).run()?;
    ensure!(
        outcome.stdout_text() == format!("{place}\n"),
        "{}",
        describe(&outcome)
    );
    tried.check_unmarked()
}

fn words_of_a_command_line(context: &Context) -> Result<()> {
    let tried = Tried::new(context)?;
    let mount = format!("{0}:{0}", tried.marks.display());
    let image = images::reference("busybox")?;
    let run = |options: &[&str], words: &[&str]| {
        context
            .orbit("run")?
            .args(["--image", &image, "--mount", &mount])
            .args(options)
            .args(words)
            .run()?
            .success()
    };
    let words = [&["--"][..], &tried.printing()].concat();
    tried.check(&run(&[], &words)?.stdout)?;
    // In one text, with what makes words of it, and nothing else.
    let quoted: Vec<String> = tried
        .printing()
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', "'\\''")))
        .collect();
    tried.check(&run(&["--cmd", &quoted.join(" ")], &[])?.stdout)?;
    let bare = format!("printf %s\\\\n {} $HOME * ~ a;b a|b >x", tried.words[0]);
    let found = run(&["--cmd", &bare], &[])?.stdout;
    let expected = format!(
        "$(touch\n{}/1)\n$HOME\n*\n~\na;b\na|b\n>x\n",
        tried.marks.display()
    );
    ensure!(found == expected, "{found:?}, not {expected:?}");
    let variables: Vec<String> = tried
        .variables()
        .flat_map(|(name, word)| ["--env".to_owned(), format!("{name}={word}")])
        .collect();
    let options: Vec<&str> = variables.iter().map(String::as_str).collect();
    let found = run(&options, &["--", ENVIRONMENT[0], ENVIRONMENT[1]])?.stdout;
    tried.check_variables(&found)
}

/// The tests' environment, and a service: its command, its environment, and the program that says that it is ready.
fn words_of_a_file(context: &Context) -> Result<()> {
    let tried = Tried::new(context)?;
    let asserts: Vec<String> = tried
        .variables()
        .map(|(name, word)| {
            format!("assert_eq!(std::env::var({name:?}).as_deref(), Ok({word:?}));")
        })
        .collect();
    let text = format!("#[test] fn words() {{ {} }}", asserts.join("\n"));
    let package = package(context, &[("words", &text)])?;
    // TOML's own strings, of which JSON's are some.
    let toml = |text: &str| serde_json::Value::from(text).to_string();
    let list = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| toml(word)).collect();
        format!("[{}]", words.join(", "))
    };
    let variables: Vec<String> = tried
        .variables()
        .map(|(name, word)| format!("{name} = {}", toml(word)))
        .collect();
    let variables = format!("{{ {} }}", variables.join(", "));
    let marks = tried.marks.display();
    // A shell that is asked for has its words from nobody else. It says that it is up by a name that is one more.
    let script = format!(
        "printf '%s\\0' \"$@\" >{marks}/words; cat /proc/self/environ >{marks}/environ; \
         touch \"/tmp/$0\"; exec sleep 1000"
    );
    let name = "$(touch up) `x`; y";
    let words = ["sh", "-c", &script, name];
    let words = [&words[..], &tried.printing()[2..]].concat();
    fs::create_dir(package.join(".config"))?;
    fs::write(
        package.join(".config/orbit.toml"),
        format!(
            "env = {variables}\nmount = [{mount}]\n\n[[service]]\nname = \"words\"\nimage = {image}\n\
             cmd = {cmd}\nenv = {variables}\nmount = [{mount}]\nwait = [{{ exec = {ready} }}]\n",
            mount = toml(&format!("{marks}:{marks}:rw")),
            image = toml(&images::reference("busybox")?),
            cmd = list(&words),
            ready = list(&["test", "-e", &format!("/tmp/{name}")]),
        ),
    )?;
    for isolation in ["binary", "test"] {
        let mut command = told::command(context, &package)?;
        let output = command
            .args(["--test", "words", "--isolate", isolation])
            .output()?;
        let told = Told::of(&output)?;
        ensure!(told.code == Some(0), "{isolation}: {}", told.stderr);
        told.one("test-finished", "words")?;
        let (words, environ) = (tried.marks.join("words"), tried.marks.join("environ"));
        let (found, variables) = (fs::read_to_string(&words)?, fs::read_to_string(&environ)?);
        fs::remove_file(words)?;
        fs::remove_file(environ)?;
        tried.check(&found)?;
        tried.check_variables(&variables)?;
    }
    Ok(())
}

/// Where Orbit's own files lie, and where an image does, goes to the kernel in mounts of many layers, which has a notation of
/// its own for several of them.
fn paths_are_no_options(context: &Context) -> Result<()> {
    let tried = Tried::new(context)?;
    for name in [
        "with blanks",
        "a:b",
        "a,b",
        "a,upperdir=x,b",
        "back\\slash",
        "a\\:b\\,c",
        "$(touch x) `touch y`;&|",
        "line\nline",
        "#%s\"'",
        "é\u{202e}",
    ] {
        let directory = context.work().join(name);
        fs::create_dir(&directory)?;
        let root = rootfs(context, &format!("{name}/root"))?;
        let ran = |image: &str, cache: &Path| -> Result<()> {
            let finished = context
                .orbit("run")?
                .env("ORBIT_CACHE_DIR", cache)
                .args([
                    "--image",
                    image,
                    "--",
                    "sh",
                    "-c",
                    "echo x >/etc/y; echo up",
                ])
                .run()?
                .success()?;
            ensure!(finished.stdout == "up\n", "{finished}");
            Ok(())
        };
        let told = || format!("{name:?}");
        // As a reference it has a tag, and a tag begins with a colon.
        if !name.contains(':') {
            let image = format!("dir:{}", root.display());
            ran(&image, &context.cache()).with_context(told)?;
        }
        let layers = images::reference("busybox")?;
        ran(&layers, &directory.join("cache")).with_context(told)?;
        ensure!(!root.join("etc/y").exists(), "{name:?} was written to");
        // And as what is mounted.
        let outcome = Sandbox::builder()
            .image(&layers)
            .mount(Mount::overlay(&directory, format!("/m/{name}")))
            .mount(Mount::bind_read_only(&directory, format!("/b/{name}")))
            .cmd([
                "sh",
                "-c",
                "cat /proc/self/mounts >/dev/null; for d in /m/* /b/*; do ls \"$d\"; done",
            ])
            .run()
            .with_context(told)?;
        let found = outcome.stdout_text();
        ensure!(
            found.lines().filter(|line| *line == "root").count() == 2,
            "{name:?}: {}",
            describe(&outcome)
        );
    }
    tried.check_unmarked()
}
