"""What may be found in a data file: the codes that are sent, and the sentences that people read."""

from __future__ import annotations

from enum import StrEnum


class DataErrorCode(StrEnum):
    """Kinds of bad rows."""

    UNKNOWN_FILE_KIND = "UnknownFileKind"
    DAMAGED_FILE = "DamagedFile"
    EMPTY_FILE = "EmptyFile"
    INVALID_UTF8 = "InvalidUtf8"
    INVALID_JSON = "InvalidJson"
    NOT_AN_OBJECT = "NotAnObject"
    UNKNOWN_FORMAT = "UnknownFormat"
    MIXED_FORMATS = "MixedFormats"
    NOT_PREFERENCE = "NotPreference"
    PRETOKENISED = "Pretokenised"
    EXTRA_COLUMN = "ExtraColumn"
    MISSING_FIELD = "MissingField"
    WRONG_TYPE = "WrongType"
    INVALID_WEIGHT = "InvalidWeight"
    UNSUPPORTED_CONTENT = "UnsupportedContent"
    IMAGE_NOT_FROM_USER = "ImageNotFromUser"
    IMAGE_WEIGHTED = "ImageWeighted"
    INVALID_IMAGE = "InvalidImage"
    IMAGE_TOO_LARGE = "ImageTooLarge"
    IMAGE_TOO_NARROW = "ImageTooNarrow"
    TOO_MANY_IMAGES = "TooManyImages"
    IMAGES_UNSUPPORTED = "ImagesUnsupported"
    IMAGE_TOKEN = "ImageToken"
    EMPTY_MESSAGES = "EmptyMessages"
    INVALID_ROLE = "InvalidRole"
    LAST_MESSAGE_FROM_ASSISTANT = "LastMessageFromAssistant"
    NOT_ONE_ASSISTANT_MESSAGE = "NotOneAssistantMessage"
    NO_ASSISTANT_MESSAGE = "NoAssistantMessage"
    EMPTY_ANSWER = "EmptyAnswer"
    IDENTICAL_ANSWERS = "IdenticalAnswers"
    NO_CHAT_TEMPLATE = "NoChatTemplate"
    TEMPLATE_REFUSED = "TemplateRefused"
    BORDER_UNCLEAR = "BorderUnclear"
    EMPTY_PROMPT = "EmptyPrompt"
    NO_END_TOKEN = "NoEndToken"
    PROMPT_TOO_LONG = "PromptTooLong"
    ROW_TOO_LONG = "RowTooLong"
    TOKEN_OUT_OF_RANGE = "TokenOutOfRange"


DATA_SENTENCES: dict[DataErrorCode, str] = {
    DataErrorCode.UNKNOWN_FILE_KIND: "the file is neither JSON Lines (.jsonl, .gz, .zst) nor Parquet: convert it",
    DataErrorCode.DAMAGED_FILE: "the file is damaged or cut off here, so the rest cannot be read: write it again",
    DataErrorCode.EMPTY_FILE: "the file holds no rows: write at least one",
    DataErrorCode.INVALID_UTF8: "the line is not UTF-8: save the file as UTF-8",
    DataErrorCode.INVALID_JSON: "the line is not JSON: write one JSON object per line",
    DataErrorCode.NOT_AN_OBJECT: "the line is JSON but no object: write {...}",
    DataErrorCode.UNKNOWN_FORMAT: "the row has the columns of no known format: give input, preferred_output and"
    " non_preferred_output; prompt, chosen and rejected; messages; prompt and completion; or text",
    DataErrorCode.MIXED_FORMATS: "the row has another format than the first row: use one format per file",
    DataErrorCode.NOT_PREFERENCE: "DPO needs preference rows: two answers to the same prompt",
    DataErrorCode.PRETOKENISED: "the file holds token ids, which fit one tokenizer only: give the text itself",
    DataErrorCode.EXTRA_COLUMN: "the column is not part of the format: remove it, or set data.extraColumns to Ignore",
    DataErrorCode.MISSING_FIELD: "the field is missing: add it",
    DataErrorCode.WRONG_TYPE: "the field has the wrong type: see docs/data.md for the format",
    DataErrorCode.INVALID_WEIGHT: "a row's weight is a finite number of at least 0, a message's is the integer 0 or 1",
    DataErrorCode.UNSUPPORTED_CONTENT: "only parts of type text and image_url can be trained on: remove audio, video"
    " and the like",
    DataErrorCode.IMAGE_NOT_FROM_USER: "only messages of the user may hold images: move it there",
    DataErrorCode.IMAGE_WEIGHTED: "a message with images is never learned: give it the weight 0 or none",
    DataErrorCode.INVALID_IMAGE: "the image is no whole JPEG, PNG or WEBP of 8 bits a channel in a URL such as"
    " data:image/png;base64,...: write it again",
    DataErrorCode.IMAGE_TOO_LARGE: "the image has more than 10 MiB, or more pixels than can be held: make it smaller",
    DataErrorCode.IMAGE_TOO_NARROW: "the image is more than 200 times as long as wide: cut it",
    DataErrorCode.TOO_MANY_IMAGES: "the row has more than 10 images: remove some",
    DataErrorCode.IMAGES_UNSUPPORTED: "the model takes no images: remove them, or choose a model with a vision encoder"
    " whose images this version can prepare (Qwen3-VL)",
    DataErrorCode.IMAGE_TOKEN: "the row has another number of image tokens than of images: remove the token from the"
    " text, or use a chat template that shows images",
    DataErrorCode.EMPTY_MESSAGES: "the list of messages is empty: give at least one message",
    DataErrorCode.INVALID_ROLE: "the role is none of system, user, assistant, tool",
    DataErrorCode.LAST_MESSAGE_FROM_ASSISTANT: "the last input message is from the assistant: move it to the outputs",
    DataErrorCode.NOT_ONE_ASSISTANT_MESSAGE: "the output must be a list of exactly one message from the assistant",
    DataErrorCode.NO_ASSISTANT_MESSAGE: "no message is from the assistant, so there is nothing to learn",
    DataErrorCode.EMPTY_ANSWER: "the answer is empty: remove the row or write an answer",
    DataErrorCode.IDENTICAL_ANSWERS: "preferred and non-preferred answer are the same: remove the row",
    DataErrorCode.NO_CHAT_TEMPLATE: "the model's tokenizer has no chat template, so messages cannot be rendered:"
    " set data.chatTemplate, or choose a chat model",
    DataErrorCode.TEMPLATE_REFUSED: "the chat template refuses the row: check order and roles of the messages",
    DataErrorCode.BORDER_UNCLEAR: "the chat template renders the prompt differently with an answer, so the answer's"
    " first token is unclear: use another model or template",
    DataErrorCode.EMPTY_PROMPT: "the prompt is empty and the tokenizer has no begin token to put in its place: write a"
    " prompt",
    DataErrorCode.NO_END_TOKEN: "the tokenizer has no end token, so an answer in plain text cannot end: give messages",
    DataErrorCode.PROMPT_TOO_LONG: "the prompt alone fills maxSeqLength: shorten it or raise maxSeqLength",
    DataErrorCode.ROW_TOO_LONG: "the row is longer than maxSeqLength: shorten it, raise maxSeqLength, or set"
    " data.overlong to Drop or Truncate",
    DataErrorCode.TOKEN_OUT_OF_RANGE: "the tokenizer made a token that the model does not know: model and tokenizer"
    " do not fit",
}


class DataWarningCode(StrEnum):
    """What is odd about a row that is no error."""

    DUPLICATE_ROW = "DuplicateRow"
    IN_TRAINING_FILE = "InTrainingFile"
    PROMPT_IN_TRAINING_FILE = "PromptInTrainingFile"
    TOO_LONG = "TooLong"
    PROMPT_TOO_LONG = "PromptTooLong"
    TRUNCATED = "Truncated"
    NOTHING_TO_TRAIN = "NothingToTrain"
    LAST_TURN_ONLY = "LastTurnOnly"
    CONTROL_TOKEN = "ControlToken"


DATA_WARNINGS: dict[DataWarningCode, str] = {
    DataWarningCode.DUPLICATE_ROW: "the row repeats an earlier one",
    DataWarningCode.IN_TRAINING_FILE: "the row is also in trainingFile: evaluation will look better than it is",
    DataWarningCode.PROMPT_IN_TRAINING_FILE: "the prompt is also in trainingFile",
    DataWarningCode.TOO_LONG: "the row is longer than maxSeqLength and is left out",
    DataWarningCode.PROMPT_TOO_LONG: "the prompt alone fills maxSeqLength, so the row is left out",
    DataWarningCode.TRUNCATED: "the row is longer than maxSeqLength and is cut",
    DataWarningCode.NOTHING_TO_TRAIN: "the row has weight 0 or no token to train on, and is left out",
    DataWarningCode.LAST_TURN_ONLY: "only the last answer is trained: the chat template renders earlier ones anew",
    DataWarningCode.CONTROL_TOKEN: "the text itself holds the tokenizer's begin or end token, which then stands twice:"
    " remove it",
}
