from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('chat', '0002_sharing_and_prompts'),
    ]

    operations = [
        migrations.AddField(
            model_name='generation',
            name='api_key_pk',
            field=models.UUIDField(editable=False, help_text='The key it was asked for with: its rights and limits hold.', null=True),
        ),
    ]
