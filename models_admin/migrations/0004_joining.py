from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('models_admin', '0003_lifecycle'),
    ]

    operations = [
        migrations.AddField(
            model_name='node',
            name='machine',
            field=models.CharField(blank=True, editable=False, max_length=32),
        ),
        migrations.AddField(
            model_name='portalconfig',
            name='key_fingerprint',
            field=models.CharField(blank=True, editable=False, max_length=64),
        ),
    ]
