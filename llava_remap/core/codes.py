"""The codes of everything that can go wrong, and their exit codes.

docs/reference/messages.md is made from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command line."""

    DONE = 0
    PROBLEMS = 1
    USAGE = 2
    INPUT = 3
    RESOURCES = 4
    LIBRARY = 5
    INTERNAL = 70


@dataclass(frozen=True, slots=True)
class Code:
    """The fixed part of a problem.

    Attributes:
        title: a few words, the same every time.
        exit: the exit code of a job with this problem. A note has no effect on it.
        about: the meaning, and what to do: the entry in docs/reference/messages.md.
        unmatched: whether the problem's names have no counterpart on the other side, so that a
            report suggests similar names from there.
    """

    title: str
    exit: Exit
    about: str
    unmatched: bool = False


# fmt: off
CODES: dict[str, Code] = {
    # Input
    "LR100": Code("checkpoint not found or not readable", Exit.INPUT,
        "The path doesn't exist or holds no weights. Give the folder that the weights lie in, a "
        "file of weights, an index or a manifest. Or a file exists and can't be read: a link to "
        "nowhere, a pipe, a folder in its place, no permission. Such a file never counts as "
        "absent."),
    "LR101": Code("Git LFS pointer in place of weights", Exit.INPUT,
        "The file is the text that Git LFS keeps in place of a large file. Run `git lfs pull`, or "
        "download the file itself."),
    "LR102": Code("truncated, corrupt or changed file", Exit.INPUT,
        "A file's size or content contradicts its own header: download or copy it again. Or it was "
        "changed after it was opened: leave the sources alone while a job runs."),
    "LR103": Code("index and shards disagree", Exit.INPUT,
        "The index names a shard or a tensor that isn't there, a tensor is in two shards, or "
        "shards without an index are "
        "incomplete. If other weights lie complete beside an index, the message has the command "
        "that puts the index aside."),
    # LR104 is a finding in a file that can be read, so it counts as a mapping problem.
    "LR104": Code("DeepSpeed ZeRO-3 stubs", Exit.PROBLEMS,
        "Tensors of shape [0]: DeepSpeed's ZeRO-3 keeps the values elsewhere. Run the "
        "`zero_to_fp32.py` of the training "
        "folder and give its output."),
    "LR105": Code("pickle wants to build something", Exit.INPUT,
        "A pickle asks for more than descriptions of tensors. It isn't run; save the plain state "
        "dict again."),
    "LR106": Code("not a model checkpoint", Exit.INPUT,
        "Optimizer state, a trainer's file, a checkpoint cut up by ranks (DeepSpeed's ZeRO-3, "
        "FSDP, verl), a quantised model, "
        "delta weights, another program's format, or JSON that is neither manifest nor index. The "
        "message says how to make a model checkpoint of it."),
    "LR107": Code("adapter only", Exit.INPUT,
        "Only the pairs of a LoRA adapter are there; they change a base model that is needed too: "
        "`--source model=BASE --source adapter=DIR`."),
    "LR108": Code("projector only", Exit.INPUT,
        "Only the projector is there; the language model and the tower are needed too: "
        "`--source model=LANGUAGE_MODEL --source projector=DIR`."),
    "LR109": Code("already converted", Exit.PROBLEMS,
        "The checkpoint is a whole model in a layout of transformers: a plan of `hf-layouts` "
        "proved it. Load a folder in the classic layout as it is. From another layout, `apply "
        "hf-layouts` makes the classic one, and merges an adapter that was trained on it. If "
        "another adapter or a projector was given, the message says which model to give with it."),
    "LR110": Code("names with a wrapper on", Exit.PROBLEMS,
        "Names contain a wrapper that a training framework puts around modules, and no rule "
        "removes it. Let the rule file extend `parts/wrappers.yaml`."),
    "LR111": Code("a manifest has no bytes", Exit.PROBLEMS,
        "A manifest has names and shapes and no values. Plan from it with `--dry-run`; convert the "
        "checkpoint itself."),
    "LR112": Code("the config doesn't say enough", Exit.INPUT,
        "The sources' config.json lacks something that tensors can't show, or has an impossible "
        "value. Give the part's own checkpoint with its config, or mend the config."),
    "LR113": Code("unreadable tokenizer, config, record or snapshot", Exit.INPUT,
        "A tokenizer, processor or config file, a folder's record, or a rule file's snapshot, "
        "can't be understood. Replace it by "
        "the original."),
    "LR114": Code("not to be had from the hub", Exit.INPUT,
        "No network, no such repository or revision, no permission, or a server's error; or an "
        "answer that no hub gives (an ETag "
        "or a commit that is a path, other bytes than were announced), or a cache with links that "
        "lead out of it. Download it "
        "elsewhere and give its folder."),
    "LR115": Code("adapter that can't be merged", Exit.INPUT,
        "The adapter isn't plain LoRA on linear layers (DoRA, another kind, one that changed its "
        "base first), its config or half of a pair is missing, or config and tensors contradict "
        "each other. Or pairs lie beside the layers that they change, and nothing gives their "
        "alpha. PEFT itself merges most of these adapters."),
    # Rule file
    "LR200": Code("rule file not found or not readable", Exit.USAGE,
        "No such file, and no shipped rule file of that name: see `llava-remap rules list`."),
    "LR201": Code("invalid rule file", Exit.USAGE,
        "YAML that can't be read, an unknown or missing field, a value of the wrong kind, or a "
        "value that the target doesn't know. "
        "The message has the place as file:line:column."),
    "LR202": Code("invalid pattern", Exit.USAGE,
        "A template or regex can't be compiled, or uses a field or group that isn't there."),
    "LR203": Code("not idempotent", Exit.USAGE,
        "`rules lint`: a rule's new name would be renamed again if the rules ran twice, by the "
        "same rule or by another one; or a tensor operation would take what another one makes, "
        "though a tensor goes through one only."),
    "LR204": Code("shadowed", Exit.USAGE,
        "`rules lint`: a rule can take no name, since rules before it take all that are made from "
        "its template. Regexes are not judged. To replace an inherited rule, give the new one its "
        "id."),
    "LR205": Code("matched nothing", Exit.USAGE,
        "Note of `rules lint --source`: a rule takes none of the names. If that is expected, give "
        "the rule `optional: true`."),
    "LR206": Code("pattern ran into the time limit", Exit.USAGE,
        "A regex took too long on a name, or all regexes of a file together took too long. Make "
        "it simpler, or write a template, which never takes long."),
    "LR208": Code("pattern takes more than it seems to", Exit.USAGE,
        "`rules lint`: a regex begins or ends inside a segment of a name that was tried: `^model` "
        "takes `modelx.a` as well as `model.a`."),
    "LR209": Code("two rules with one id", Exit.USAGE,
        "Two rules of one file, or of two files that it extends, share an id."),
    "LR210": Code("extends cannot be resolved", Exit.USAGE,
        "A file that `extends` names doesn't exist, extends this file again, or gives a field "
        "another value than a second parent does."),
    "LR211": Code("wrong arguments", Exit.USAGE,
        "Arguments that don't go together: a source named twice or unknown, or none where one is "
        "needed."),
    "LR212": Code("a post-load rule can't be used", Exit.USAGE,
        "`post_load` names a plug-in that isn't installed, or an option that it doesn't take; or "
        "the plug-in itself fails, or makes something other than it planned."),
    "LR213": Code("rule without a test", Exit.USAGE,
        "`rules lint`: no test of the file has a name that the rule takes."),
    "LR214": Code("fields differ", Exit.USAGE,
        "`rules lint`: `to` leaves out a field of `from`, so two names can become one, and "
        "neither can be recovered. Add the field, or say `one_way: true`."),
    "LR215": Code("doesn't come back", Exit.USAGE,
        "`rules lint`: a rule's way back leads from its new name to a name that doesn't become "
        "the new name again."),
    "LR216": Code("several rule files fit", Exit.USAGE,
        "`convert`: the checkpoint can become one of several models, and nothing in it says "
        "which. The message says what distinguishes the rule files, and has the command for each."),
    # Mapping
    "LR301": Code("source names that no rule maps", Exit.PROBLEMS,
        "No rule of `names` takes these tensors: their names are new, or a tower is of another "
        "kind. Map them, infer a rule "
        "file with `rules new`, or drop them with a reason; they are never left out silently.",
        unmatched=True),
    "LR302": Code("target parameters that get nothing", Exit.PROBLEMS,
        "Parameters for which no source has a tensor, or a necessary source that wasn't given.",
        unmatched=True),
    "LR303": Code("produced names that the model doesn't have", Exit.PROBLEMS,
        "Rules made names that the target doesn't have: a config of another size, or a rule that "
        "reaches too far.", unmatched=True),
    "LR304": Code("two sources for one target", Exit.PROBLEMS,
        "Two tensors become one parameter. Take one out of the checkpoint, or drop it by a rule."),
    "LR305": Code("nothing matched", Exit.PROBLEMS,
        "The rule file knows none of the names. The message names the shipped rule file that "
        "fits, as it is or once a prefix is removed from the names, or has the command that "
        "infers a rule file."),
    "LR306": Code("a drop takes what the target wants", Exit.PROBLEMS,
        "Without this drop, the tensor would have provided a parameter that is missing. `rules "
        "lint` also finds a drop that leaves no name to a rename."),
    "LR307": Code("empty or doubled name segment", Exit.PROBLEMS,
        "A rule made a name like `a..b` or `model.model.x`: it was applied to names that already "
        "had the prefix.", unmatched=True),
    "LR308": Code("projector kind", Exit.PROBLEMS,
        "Note. The config names another projector than the tensors show. The tensors count."),
    "LR309": Code("tower kind", Exit.PROBLEMS,
        "The tower's tensors and a config contradict each other. This is a note if the tensors "
        "settle the question, and a refusal if they can't."),
    "LR310": Code("tower both in the checkpoint and given apart", Exit.PROBLEMS,
        "Note. The checkpoint has a tower, and another tower was given beside it. The checkpoint's "
        "is used; the note has the number of tensors that differ."),
    "LR311": Code("wrong family", Exit.PROBLEMS,
        "Names or config contradict the rule file's `detect`, or, with `revert --rules`, its "
        "target class: the checkpoint is of another family, even if all names fit."),
    "LR312": Code("another source's tensors taken", Exit.PROBLEMS,
        "Note. An adapter or a projector has tensors for parameters that other sources have too. "
        "Its own tensors are used."),
    "LR313": Code("LoRA pair without its base tensor", Exit.PROBLEMS,
        "A pair changes a tensor that no source has, or a tensor that the model ties to another. "
        "The base isn't the one that the adapter was trained on, or the rule file isn't for this "
        "model."),
    "LR314": Code("looks alike, computes something else", Exit.PROBLEMS,
        "The names fit, but the config has a setting that the target model computes differently, "
        "or not at all. The message says what differs. Another rule file is for this checkpoint, "
        "or none is."),
    "LR315": Code("what users of the folder have to know", Exit.PROBLEMS,
        "Note from the rule file: the folder does something differently from the research code, "
        "or does less."),
    "LR316": Code("another part than is named", Exit.PROBLEMS,
        "Note. A config names a tower, or the model that an adapter or a projector was trained "
        "from, and another one is used: one that was given, or a default of the same name."),
    "LR317": Code("trained projector left behind", Exit.PROBLEMS,
        "An adapter is given without the projector that was trained with it, so the base's own "
        "projector would be used. This is a note if the adapter's files don't show whether a "
        "projector was trained."),
    "LR318": Code("keys of the config that nothing reads", Exit.PROBLEMS,
        "Note. The source's config.json has keys that the research code may compute with. The rule "
        "file knows these keys and doesn't use them, and the new folder doesn't have them."),
    "LR319": Code("language model", Exit.PROBLEMS,
        "Note. The kind of language model was recognised by the end of a name alone, or versions "
        "of transformers compute it differently."),
    "LR320": Code("no rule file fits", Exit.PROBLEMS,
        "`convert`: no shipped rule file takes every name of the checkpoint and agrees with its "
        "config. `inspect` gives every reason; `rules new` makes a rule file for unknown names."),
    "LR321": Code("sizes of an operation", Exit.PROBLEMS,
        "A tensor operation of the rule file (`tensors`) takes tensors whose sizes don't add up, "
        "or lacks one of them. The report says for each what is wrong. `revert --rules` can't take "
        "an operation back that drops a part, or that puts together tensors of unknown sizes."),
    # Shapes, dtypes, vocabulary
    "LR401": Code("shapes differ", Exit.PROBLEMS,
        "A tensor's shape differs from the parameter's. The message has the config keys with "
        "either size, and says whether only the order of axes differs. Otherwise, config.json is "
        "mostly another model's."),
    "LR402": Code("vocabulary sizes disagree", Exit.PROBLEMS,
        "Rows of embed_tokens, the config's vocab_size and the tokenizer's length contradict each "
        "other, or a new token gets "
        "no row."),
    "LR403": Code("token id taken by another token", Exit.PROBLEMS,
        "A token of the rule file has an id that another token has, or gets another id than "
        "planned, or another id than in the source's config."),
    "LR405": Code("tied tensors differ", Exit.PROBLEMS,
        "The config ties lm_head to embed_tokens, and the checkpoint has both with different "
        "values."),
    "LR406": Code("non-finite or too large values", Exit.PROBLEMS,
        "inf or NaN among values that are rounded or used in a computation, or values that are "
        "too large for the dtype that is written."),
    "LR407": Code("spare rows used, no resize", Exit.PROBLEMS,
        "Note. embed_tokens has spare rows, so new tokens need no new rows."),
    "LR408": Code("no tokenizer", Exit.PROBLEMS,
        "Note. No source has a tokenizer: the folder has none, nor a processor or a chat template. "
        "`--source "
        "language_model=DIR` adds them."),
    "LR409": Code("not a dtype for parameters", Exit.PROBLEMS,
        "A parameter is stored as whole numbers, complex numbers or in eight bits: mostly "
        "quantised weights."),
    "LR410": Code("rows of new tokens stay", Exit.PROBLEMS,
        "Note. With `revert --rules`, nothing shows which rows existed before, and new rows may "
        "have been trained. All rows are kept, and the original's config.json must give their "
        "number."),
    "LR411": Code("weights alone", Exit.PROBLEMS,
        "Note. `revert --rules` writes weights: config and tokenizer files can't be derived, and "
        "what a rule drops doesn't come back. "
        "The note says what to copy. Another such note names tensors that a tensor operation or a "
        "rename may have made: the operation counts."),
    "LR412": Code("tokenizer can't be reproduced", Exit.PROBLEMS,
        "The tokenizer that would be written makes other ids of some text than the source's own "
        "does. The message has the first "
        "such text. Nothing is written."),
    "LR413": Code("no chat template fits", Exit.PROBLEMS,
        "No chat template of the rule file fits the tokenizer, or the one that was chosen writes a "
        "special token that the "
        "tokenizer doesn't have. Name the right one in a rule file that extends this one."),
    "LR414": Code("two tokenizers that disagree", Exit.PROBLEMS,
        "Note. A tokenizer.json and a tokenizer.model lie side by side and make different ids of a "
        "text. The tokenizer.json is "
        "taken."),
    "LR415": Code("special token without an id", Exit.PROBLEMS,
        "Note. The source's tokenizer files name a special token (for unknown words, for padding, "
        "…) that is none of its tokens. "
        "The folder's tokenizer goes without it, as the model has no row for it."),
    # Resources and output
    "LR501": Code("not enough memory", Exit.RESOURCES,
        "The machine, its control group or `ulimit` leaves clearly less memory than the job needs; "
        "or it ran out on the way."),
    "LR502": Code("not enough disk", Exit.RESOURCES,
        "The output, or the hub's cache, needs more room than the disk has."),
    "LR503": Code("output not empty", Exit.RESOURCES,
        "The output is a file, or a folder with something in it, or another job is writing into "
        "it. Nothing is overwritten."),
    "LR504": Code("resume refused", Exit.RESOURCES,
        "The job that was begun in the folder is not this one: the rule file, a source, an option "
        "or the version of llava-remap differs, so the finished files wouldn't fit. Run the job "
        "as it was begun, or delete the folder."),
    "LR505": Code("unfinished folder", Exit.RESOURCES,
        "A job was begun in the folder and not ended: it still runs, was interrupted or killed, or "
        "the disk was full. The same "
        "command with `--resume` goes on; finished files are compared with their digests and "
        "kept."),
    "LR506": Code("shared storage", Exit.PROBLEMS,
        "Note. Several names lie on the same bytes: one tensor, or views of one storage. The note "
        "says whether the bytes were written once or for each name."),
    "LR508": Code("output can't be written", Exit.RESOURCES,
        "Output or report can't be created at the path that was given, or would lie inside a "
        "source or in each other."),
    "LR510": Code("library that doesn't work", Exit.LIBRARY,
        "A library that is needed can't be imported: it is broken, doesn't work with another "
        "library, or isn't there. Rule file and checkpoint are not the cause. The message has the "
        "library's own error, and the command that installs it anew."),
    "LR511": Code("limit of the system", Exit.RESOURCES,
        "The system lets this process open no more files, start no more threads or processes, or "
        "write no temporary files. The "
        "message names the limit. The checkpoint is not the cause."),
    # Verification
    "LR601": Code("the loader disagrees", Exit.PROBLEMS,
        "The installed transformers would not load exactly these names and shapes, or, after "
        "`revert --rules`, the rule file would not take them forward. The output has been "
        "removed; in `verify`, the folder isn't what was written."),
    "LR602": Code("values differ", Exit.PROBLEMS,
        "A tensor differs from what its source gives: it was changed later, or it was made from "
        "another checkpoint."),
    "LR603": Code("files differ from the record", Exit.PROBLEMS,
        "Since the folder was written, a file was removed or changed, or a file was added that a "
        "loader would read; or the record itself was changed."),
    "LR604": Code("number of image tokens", Exit.PROBLEMS,
        "Image processor and tower disagree on how many image tokens a picture has."),
    "LR605": Code("the processor doesn't work", Exit.PROBLEMS,
        "The processor that was made doesn't open, or fails on a picture and a sentence; or the "
        "chat template fails, or takes "
        "too much time or memory; or pictures or prompts would be too large to be tried."),
    "LR606": Code("no record", Exit.INPUT,
        "`verify` and `revert` need the record that `apply` writes, and the folder has none."),
    "LR607": Code("original bytes not kept", Exit.PROBLEMS,
        "The original values aren't in the folder any more: `--dtype` rounded tensors, a "
        "post-load rule or a merged adapter changed them, or a tied tensor had another dtype than "
        "the one that was written. Take them from the original checkpoint."),
    "LR608": Code("video processor not tried", Exit.PROBLEMS,
        "A note. The video processor was written, but transformers opens it with torchvision only, "
        "which isn't installed."),
    "LR609": Code("generation stops at the end of a turn", Exit.PROBLEMS,
        "Note. The chat template ends a turn with a token at which the source's generation config "
        "didn't stop. The folder's generation config stops there, as the research code does."),
    "LR610": Code("pictures are not padded", Exit.PROBLEMS,
        "Note. The research code fills pictures up to a square with the mean colour, and the "
        "folder crops or squeezes them: "
        "pixels of pictures that aren't square differ."),
    "LR611": Code("stock image processor", Exit.PROBLEMS,
        "Note. No source has the tower's preprocessor_config.json, so mean, standard deviation "
        "and cropping are those with which stock towers of its kind are trained."),
}
# fmt: on
