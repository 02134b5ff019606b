"""Files of the Hugging Face hub: read over the network by ranges as they are needed, and sent as they are complete.

`location` tells ids from paths, `repository` asks the hub what a repository holds (by huggingface_hub, the extra
`hub`), `link` fetches ranges and trusts no answer, `spool` keeps some on the disk, `tape` decides what is fetched when,
and `files` makes Readables and Folders of all that. `upload` is a sink for the files of a run. Nothing above this room
knows that there is a network.
"""
