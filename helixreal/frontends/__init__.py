"""Front ends in processes of their own: they speak HTTP, the coordinator's process does not.

The coordinator's process has a :class:`~helixreal.frontends.door.Door`; a front end has a
:class:`~helixreal.frontends.remote.RemoteFrontend`, to which it serves the HTTP application.
Between the two are the messages of :mod:`helixreal.frontends.wire`.
"""
