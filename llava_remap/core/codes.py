"""The codes of all problems, and their exit codes.

docs/reference/messages.md is made from this module.
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
        exit: the exit code of the command, unless the problem is a note.
        about: what the code means and what to do: the entry in docs/reference/messages.md.
        unmatched: whether the problem's names have no counterpart on the other side. A report
            then suggests similar names from the other side.
    """

    title: str
    exit: Exit
    about: str
    unmatched: bool = False


# fmt: off
CODES: dict[str, Code] = {
    # Input
    "LR100": Code("checkpoint not found or not readable", Exit.INPUT,
        "The path doesn't exist or holds no weights: give the folder with the weights, a weight "
        "file, an index or a manifest. Or a file exists but can't be read: a broken link, a pipe, "
        "a folder in its place, no permission. An unreadable file is never treated as absent."),
    "LR101": Code("Git LFS pointer in place of weights", Exit.INPUT,
        "The file is the text that Git LFS keeps in place of a large file. Run `git lfs pull`, or "
        "download the file itself."),
    "LR102": Code("truncated, corrupt or changed file", Exit.INPUT,
        "A file's size or content contradicts its own header: download or copy the file again. Or "
        "the file was changed after it was opened: leave the sources alone while a job runs."),
    "LR103": Code("index and shards disagree", Exit.INPUT,
        "The index names a shard or a tensor that isn't there, a tensor is in two shards, or a "
        "set of shards without an index is incomplete. If other, complete weights lie beside an "
        "index, the message has the command that puts the index aside."),
    # LR104 is a finding in a file that can be read, so it counts as a mapping problem.
    "LR104": Code("DeepSpeed ZeRO-3 stubs", Exit.PROBLEMS,
        "Tensors have the shape [0]: DeepSpeed's ZeRO-3 stores the values in other files. Run the "
        "`zero_to_fp32.py` of the training folder and give its output."),
    "LR105": Code("pickle wants to build something", Exit.INPUT,
        "A pickle asks for more than descriptions of tensors, so the pickle isn't run. Save the "
        "plain state dict again."),
    "LR106": Code("not a model checkpoint", Exit.INPUT,
        "Optimizer state, a trainer's file, a checkpoint split by ranks (DeepSpeed's ZeRO-3, "
        "FSDP, verl), a quantised model, delta weights, another program's format, or JSON that is "
        "neither manifest nor index. The message says how to get a model checkpoint from it."),
    "LR107": Code("adapter only", Exit.INPUT,
        "The checkpoint holds only the pairs of a LoRA adapter. The base model is needed too: "
        "`--source model=BASE --source adapter=DIR`."),
    "LR108": Code("projector only", Exit.INPUT,
        "The checkpoint holds only a projector. The language model and the tower are needed too: "
        "`--source model=LANGUAGE_MODEL --source projector=DIR`."),
    "LR109": Code("already converted", Exit.PROBLEMS,
        "The checkpoint is a whole model in a layout of transformers, as a plan of `hf-layouts` "
        "proved. A folder in the classic layout can be loaded as it is. `apply hf-layouts` "
        "converts any other layout to the classic one, and merges an adapter that was trained on "
        "the model. Any other adapter or projector needs another model: the message says which "
        "one to give."),
    "LR110": Code("names with a wrapper on", Exit.PROBLEMS,
        "Names contain segments that a training framework puts around modules, and the rule file "
        "doesn't remove them. Let the rule file extend `parts/wrappers.yaml`."),
    "LR111": Code("a manifest has no bytes", Exit.PROBLEMS,
        "A manifest has names and shapes, but no values. Plan from it with `--dry-run`; convert "
        "the checkpoint itself."),
    "LR112": Code("the config doesn't say enough", Exit.INPUT,
        "The sources' config.json lacks something that tensors can't show, or has an impossible "
        "value. Give the part's own checkpoint with its config, or correct the config."),
    "LR113": Code("unreadable tokenizer, config, record or snapshot", Exit.INPUT,
        "A tokenizer, processor or config file, a folder's record, or a rule file's snapshot "
        "can't be understood. Replace it with the original."),
    "LR114": Code("not available from the hub", Exit.INPUT,
        "No network, no such repository or revision, no permission, or a server error. Or an "
        "answer that no hub gives: an ETag or a commit that is a path, other bytes than "
        "announced. Or a cache with links that lead out of it. Download the checkpoint elsewhere "
        "and give its folder."),
    "LR115": Code("adapter that can't be merged", Exit.INPUT,
        "The adapter isn't plain LoRA on linear layers (DoRA, another kind, or a kind that "
        "changed its base first), lacks its config or half of a pair, or has a config that "
        "contradicts its tensors. Or pairs lie beside the layers that they change, and no file "
        "gives their alpha. PEFT itself merges most of these adapters."),
    # Rule file
    "LR200": Code("rule file not found or not readable", Exit.USAGE,
        "No such file, and no shipped rule file of that name: see `llava-remap rules list`."),
    "LR201": Code("invalid rule file", Exit.USAGE,
        "YAML that can't be read, an unknown or missing field, a value of the wrong kind, or a "
        "value that the target doesn't know. The message gives the place as file:line:column."),
    "LR202": Code("invalid pattern", Exit.USAGE,
        "A template or regex can't be compiled, or uses a field or group that doesn't exist."),
    "LR203": Code("not idempotent", Exit.USAGE,
        "`rules lint`: if the rules ran twice, the same rule or another one would rename the new "
        "name again. Or a tensor operation would take what another one makes, though only one "
        "operation applies to a tensor."),
    "LR204": Code("shadowed", Exit.USAGE,
        "`rules lint`: a rule can take no name, because earlier rules take every name made from "
        "its template. Regexes are not checked. To replace an inherited rule, give the new rule "
        "the same id."),
    "LR205": Code("matched nothing", Exit.USAGE,
        "Note of `rules lint --source`: a rule takes none of the names. If that is expected, say "
        "`optional: true`."),
    "LR206": Code("pattern ran into the time limit", Exit.USAGE,
        "One regex took too long on a name, or all regexes of a file took too long together. "
        "Simplify the regex, or write a template: a template never takes long."),
    "LR208": Code("pattern takes more than it seems to", Exit.USAGE,
        "`rules lint`: a regex begins or ends inside a segment of a name that was tried. For "
        "example, `^model` takes `modelx.a` as well as `model.a`."),
    "LR209": Code("two rules with one id", Exit.USAGE,
        "Two rules in a file, or in two files that the file extends, have the same id."),
    "LR210": Code("extends cannot be resolved", Exit.USAGE,
        "A file named in `extends` doesn't exist, extends the first file again, or contradicts "
        "another extended file."),
    "LR211": Code("wrong arguments", Exit.USAGE,
        "Arguments that don't go together: a source is named twice, is unknown, or is missing."),
    "LR212": Code("a post-load rule can't be used", Exit.USAGE,
        "`post_load` names a plug-in that isn't installed, or an option that the plug-in doesn't "
        "take. Or the plug-in fails, or makes something other than it planned."),
    "LR213": Code("rule without a test", Exit.USAGE,
        "`rules lint`: no test of the file has a name that the rule takes."),
    "LR214": Code("fields differ", Exit.USAGE,
        "`rules lint`: `to` leaves out a field of `from`, so two names can become one, and "
        "neither comes back. Use the field in `to`, or say `one_way: true`."),
    "LR215": Code("doesn't come back", Exit.USAGE,
        "`rules lint`: a rule's way back leads from the new name to a name that doesn't become "
        "the new name again."),
    "LR216": Code("several rule files fit", Exit.USAGE,
        "`convert`: the checkpoint can become one of several models, and nothing in it says "
        "which. The message says what distinguishes the rule files, and has the command for each."),
    "LR217": Code("a conversion that is no rule file", Exit.USAGE,
        "`rules import`: transformers' conversion of the model type does what the rule language "
        "can't say. The message has the reason; transformers itself converts such a checkpoint."),
    # Mapping
    "LR301": Code("source names that no rule maps", Exit.PROBLEMS,
        "No rule of `names` takes these tensors: their names are new, or a tower is of another "
        "kind. Map them, infer a rule file with `rules new`, or drop them with a reason. A tensor "
        "is never left out silently.", unmatched=True),
    "LR302": Code("target parameters that get nothing", Exit.PROBLEMS,
        "No source has a tensor for these parameters, or a required source wasn't given.",
        unmatched=True),
    "LR303": Code("produced names that the model doesn't have", Exit.PROBLEMS,
        "Rules made names that the target doesn't have: the config has other sizes, or a rule "
        "takes too many names.", unmatched=True),
    "LR304": Code("two sources for one target", Exit.PROBLEMS,
        "Two tensors become one parameter. Remove one of them from the checkpoint, or drop it by "
        "a rule."),
    "LR305": Code("nothing matched", Exit.PROBLEMS,
        "The rule file knows none of the names. The message names the shipped rule file that "
        "fits, perhaps after a prefix is removed, or gives the command that infers a rule file."),
    "LR306": Code("a drop takes what the target wants", Exit.PROBLEMS,
        "Without this drop, the tensor would have provided a parameter that is missing. `rules "
        "lint` also finds a drop that takes every name of a rename."),
    "LR307": Code("empty or doubled name segment", Exit.PROBLEMS,
        "A rule made a name like `a..b` or `model.model.x`: the rule was applied to a name that "
        "already had the prefix.", unmatched=True),
    "LR308": Code("projector kind", Exit.PROBLEMS,
        "Note. The config names another kind of projector than the tensors show. The tensors "
        "count."),
    "LR309": Code("tower kind", Exit.PROBLEMS,
        "The tower's tensors and a config contradict each other. If the tensors settle the "
        "question, this is a note. If the answer depends on something that tensors can't show, "
        "the job is refused."),
    "LR310": Code("tower both in the checkpoint and given apart", Exit.PROBLEMS,
        "Note. The checkpoint has a tower, and another tower was given beside it. The "
        "checkpoint's tower is used. The note gives the number of tensors that differ."),
    "LR311": Code("wrong family", Exit.PROBLEMS,
        "Names or config contradict the rule file's `detect` or, with `revert --rules`, its "
        "target class. The checkpoint is of another family, even if all names fit."),
    "LR312": Code("another source's tensors taken", Exit.PROBLEMS,
        "Note. An adapter or a projector has its own tensors for parameters that other sources "
        "have too. The tensors of the adapter or projector are taken."),
    "LR313": Code("LoRA pair without its base tensor", Exit.PROBLEMS,
        "A pair changes a tensor that no source has, or that the model ties to another one. The "
        "adapter was trained on another base, or the rule file isn't for this adapter."),
    "LR314": Code("looks alike, computes something else", Exit.PROBLEMS,
        "The names fit, but the config describes a computation that the target model does "
        "differently or not at all. The message says what differs. Another rule file is for this "
        "checkpoint, or none is."),
    "LR315": Code("what users of the folder have to know", Exit.PROBLEMS,
        "Note from the rule file: what the folder does differently from the research code, or "
        "doesn't do. Or the values that were assumed since no config is the training's own."),
    "LR316": Code("another part than the one named", Exit.PROBLEMS,
        "Note. A tower other than the one in the config is taken, or a model other than the one "
        "that an adapter or a projector was trained from. It was given, or it is a default with "
        "the same name."),
    "LR317": Code("trained projector left behind", Exit.PROBLEMS,
        "An adapter is given without the projector that was trained with it, so the base's own "
        "projector would be taken. If the adapter's files don't show whether a projector was "
        "trained, this is a note."),
    "LR318": Code("keys of the config that nothing reads", Exit.PROBLEMS,
        "Note. The source's config.json has keys that the research code may compute with. The rule "
        "file knows these keys and doesn't use them, and the new folder doesn't have them."),
    "LR319": Code("language model", Exit.PROBLEMS,
        "Note. The kind of language model was recognised only by the end of a name, or versions "
        "of transformers compute it differently."),
    "LR320": Code("no rule file fits", Exit.PROBLEMS,
        "`convert`: no shipped rule file takes every name of the checkpoint and agrees with its "
        "config. `inspect` gives every reason. `rules new` makes a rule file for unknown names."),
    "LR321": Code("sizes of an operation", Exit.PROBLEMS,
        "A tensor operation of the rule file (`tensors`) takes tensors whose sizes don't add up, "
        "or lacks one of them. The report says for each what is wrong. `revert --rules` can't take "
        "an operation back that drops a part, or that puts together tensors of unknown sizes."),
    "LR322": Code("dtypes of an operation", Exit.PROBLEMS,
        "A tensor operation of the rule file (`tensors`) puts tensors of different dtypes together "
        "to one. `--dtype` settles in which dtype: each tensor is cast before. Integers aren't "
        "cast."),
    # Shapes, dtypes, vocabulary
    "LR401": Code("shapes differ", Exit.PROBLEMS,
        "A tensor has another shape than the parameter. The message names the config keys that "
        "have either size, and says whether only the order of axes differs. Otherwise the "
        "config.json mostly belongs to another model."),
    "LR402": Code("vocabulary sizes disagree", Exit.PROBLEMS,
        "The rows of embed_tokens, the config's vocab_size and the tokenizer's length contradict "
        "each other, or a new token gets no row."),
    "LR403": Code("token id taken by another token", Exit.PROBLEMS,
        "A token of the rule file has an id that another token has, or gets another id than "
        "planned or than the source's config says."),
    "LR405": Code("tied tensors differ", Exit.PROBLEMS,
        "The config ties lm_head to embed_tokens, but the checkpoint has two tensors with "
        "different values."),
    "LR406": Code("non-finite or too large values", Exit.PROBLEMS,
        "Values are inf or NaN where they are computed with or rounded, or values don't fit into "
        "the written dtype."),
    "LR407": Code("spare rows used, no resize", Exit.PROBLEMS,
        "Note. embed_tokens has spare rows, so new tokens need no new rows."),
    "LR408": Code("no tokenizer", Exit.PROBLEMS,
        "Note. No source has a tokenizer, so the folder has no tokenizer, processor or chat "
        "template. `--source language_model=DIR` adds them."),
    "LR409": Code("not a dtype for parameters", Exit.PROBLEMS,
        "A parameter is stored as integers, complex numbers or eight-bit values. These are mostly "
        "quantised weights."),
    "LR410": Code("rows of new tokens stay", Exit.PROBLEMS,
        "Note. With `revert --rules`, nothing shows which rows are new, and new rows may have "
        "been trained. So all rows are kept, and the original's config.json has to give their "
        "number."),
    "LR411": Code("weights alone", Exit.PROBLEMS,
        "Note. `revert --rules` writes only weights. Config and tokenizer files can't be derived, "
        "and dropped tensors don't come back. The note says what to copy. Another such note names "
        "tensors that a tensor operation or a rename may have made: the operation counts."),
    "LR412": Code("tokenizer can't be reproduced", Exit.PROBLEMS,
        "For some text, the tokenizer that would be written gives other ids than the source's "
        "tokenizer. The message has the first such text. Nothing is written."),
    "LR413": Code("no chat template fits", Exit.PROBLEMS,
        "No chat template of the rule file fits the tokenizer, or the chosen template writes a "
        "special token that the tokenizer doesn't have. Name the right template in a rule file "
        "that extends this one."),
    "LR414": Code("two tokenizers that disagree", Exit.PROBLEMS,
        "Note. A tokenizer.json and the tokenizer.model beside it give different ids for a text. "
        "The tokenizer.json is taken."),
    "LR415": Code("special token without an id", Exit.PROBLEMS,
        "Note. The source's tokenizer files name a special token (for unknown words, for padding, "
        "…) that the tokenizer doesn't have. The folder's tokenizer leaves it out, because the "
        "model has no row for it."),
    # Resources and output
    "LR501": Code("not enough memory", Exit.RESOURCES,
        "The machine, its control group or `ulimit` leaves clearly less memory than the job "
        "needs, or memory ran out during the job."),
    "LR502": Code("not enough disk", Exit.RESOURCES,
        "The output, or the hub's cache, needs more room than the disk has."),
    "LR503": Code("output not empty", Exit.RESOURCES,
        "The output is a file or a folder that isn't empty, or another job is writing into it. "
        "Nothing is overwritten."),
    "LR504": Code("resume refused", Exit.RESOURCES,
        "The folder holds an unfinished job with another rule file, source, option or version of "
        "llava-remap, so its finished files wouldn't fit. Run that job again as it was begun, or "
        "delete the folder."),
    "LR505": Code("unfinished folder", Exit.RESOURCES,
        "The folder holds a job that didn't finish: it still runs, was interrupted or killed, or "
        "the disk was full. The same command with `--resume` goes on. Finished files are compared "
        "with their digests and kept."),
    "LR506": Code("shared storage", Exit.PROBLEMS,
        "Note. Several names share bytes: one tensor, or views of one storage. The note says "
        "whether the tensor was written once or for each name."),
    "LR508": Code("output can't be written", Exit.RESOURCES,
        "The output or the report can't be created at its path, or one would lie inside a source "
        "or inside the other."),
    "LR510": Code("library that doesn't work", Exit.LIBRARY,
        "A required library can't be imported: it is broken, doesn't work with another library, "
        "or is missing. The rule file and the checkpoint are not the cause. The message has the "
        "library's own error, and the command that reinstalls it."),
    "LR511": Code("limit of the system", Exit.RESOURCES,
        "The system lets this process open no more files, start no more threads or processes, or "
        "write no temporary files. The "
        "message names the limit. The checkpoint is not the cause."),
    # Verification
    "LR601": Code("the loader disagrees", Exit.PROBLEMS,
        "The installed transformers would not load exactly these names and shapes. After `revert "
        "--rules`, the rule file would not take the written names forward. A job removes the "
        "output. In `verify`, the folder isn't what was written."),
    "LR602": Code("values differ", Exit.PROBLEMS,
        "A tensor isn't what its source gives: the tensor was changed later, or was made from "
        "another checkpoint."),
    "LR603": Code("files differ from the record", Exit.PROBLEMS,
        "Since the folder was written, a file was removed or changed, a file was added that a "
        "loader would read, or the record itself was changed."),
    "LR604": Code("number of image tokens", Exit.PROBLEMS,
        "The image processor and the tower give different numbers of image tokens for a picture."),
    "LR605": Code("the processor doesn't work", Exit.PROBLEMS,
        "The new processor doesn't open, or fails on a picture and a sentence. Or the chat "
        "template fails, or takes too much time or memory. Or pictures or prompts would be too "
        "large to try."),
    "LR606": Code("no record", Exit.INPUT,
        "`verify` and `revert` need the record that `apply` writes, and the folder has none."),
    "LR607": Code("original bytes not kept", Exit.PROBLEMS,
        "The folder no longer has the original values: `--dtype` rounded tensors, a post-load "
        "rule or a merged adapter changed them, or a tied tensor had another dtype than the "
        "written one. Take these tensors from the original checkpoint."),
    "LR608": Code("video processor not tried", Exit.PROBLEMS,
        "Note. The video processor was written but not tried: transformers opens it only with "
        "torchvision, which isn't installed."),
    "LR609": Code("generation stops at the end of a turn", Exit.PROBLEMS,
        "Note. The chat template ends a turn with a token that the generation config didn't stop "
        "at. The written generation config stops there, as the research code does."),
    "LR610": Code("pictures are not padded", Exit.PROBLEMS,
        "Note. The research code pads pictures to a square with the mean colour. The folder crops "
        "or squeezes them, so the pixels of pictures that aren't square differ."),
    "LR611": Code("stock image processor", Exit.PROBLEMS,
        "Note. No source has the tower's preprocessor_config.json. Mean, standard deviation and "
        "cropping are those of stock towers of this kind."),
}
# fmt: on
